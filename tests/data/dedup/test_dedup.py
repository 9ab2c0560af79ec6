"""Duplicates: pairs are found by similarity alone, survivors depend on the documents and not on how they lie."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.dedup import pairs as pairs_module
from isthmus.data.dedup.benchmarks import load_benchmarks
from isthmus.data.dedup.components import EXACT, KEPT, NEAR, Survivors, find, join, survivors
from isthmus.data.dedup.keys import KeyWriter
from isthmus.data.dedup.pairs import Corpus, equal_texts, near_duplicates
from isthmus.data.dedup.signatures import MinHasher
from isthmus.errors import UserError

SIGNATURE = "f92cdb13a9550061"
HASHER = MinHasher(bands=14, rows=8, ngram=5)


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def corpus_of(folder: Path, units: list[list[tuple[str, str]]]) -> Corpus:
    """Write units of (name, text)."""
    for number, unit in enumerate(units):
        writer = KeyWriter(folder / str(number), HASHER)
        for name, text in unit:
            writer.add(digest(name), digest(text), HASHER.signature(text))
        writer.close()
    return Corpus.of([folder / str(number) for number in range(len(units))], [len(unit) for unit in units])


def deduplicate(corpus: Corpus, parts: int = 1) -> Survivors:
    equal = [equal_texts(corpus, part, parts) for part in range(parts)]
    alike = [near_duplicates(corpus, band, part, parts, 0.7) for band in range(14) for part in range(parts)]
    return survivors(corpus, equal, alike)


def letters(text: str) -> str:
    """Digits count as equal in shingles, so these texts spell their numbers."""
    return text.translate(str.maketrans("0123456789", "abcdefghij"))


def test_near_duplicates_are_found_and_others_left_alone(tmp_path: Path) -> None:
    hand = random.Random(5)
    high, low = [], []
    unit: list[tuple[str, str]] = []
    for number in range(1200):
        wanted = hand.uniform(0.9, 0.99) if number % 2 else hand.uniform(0.1, 0.49)
        words = [letters(f"w{hand.randrange(10**6)}") for _ in range(300)]
        shared = round(300 * 2 * wanted / (1 + wanted))
        other = words[:shared] + [letters(f"v{hand.randrange(10**6)}") for _ in range(300 - shared)]
        sets = [{tuple(part[at : at + 5]) for at in range(296)} for part in (words, other)]
        jaccard = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        if jaccard >= 0.9:
            high.append(len(unit))
        elif jaccard < 0.5:
            low.append(len(unit))
        unit += [(f"{number}a", " ".join(words)), (f"{number}b", " ".join(other))]
    assert min(len(high), len(low)) > 400
    result = deduplicate(corpus_of(tmp_path, [unit]))
    met = [bool((result.fates[at : at + 2] == NEAR).any()) for at in range(len(unit))]
    assert sum(met[at] for at in high) >= 0.99 * len(high)
    assert sum(met[at] for at in low) < 0.01 * len(low)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_survivors_depend_on_documents_not_on_units_or_ranges(data: st.DataObject, tmp_path_factory) -> None:
    hand = random.Random(data.draw(st.integers(0, 1000)))
    bases = [[letters(f"w{hand.randrange(10**6)}") for _ in range(60)] for _ in range(6)]
    documents = []
    for number in range(30):
        words = list(hand.choice(bases))
        for _ in range(hand.choice([0, 0, 1, 2])):
            words[hand.randrange(60)] = letters(f"x{hand.randrange(10**6)}")
        documents.append((str(number), " ".join(words)))

    def names_kept(order: list[tuple[str, str]], cuts: list[int], parts: int) -> set[tuple[str, int]]:
        units = [order[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(order)], strict=True)]
        result = deduplicate(corpus_of(tmp_path_factory.mktemp("units"), units), parts)
        return {(order[at][0], result.copies.get(at, 0)) for at in np.flatnonzero(result.fates == KEPT)}

    expected = names_kept(documents, [], 1)
    shuffled = list(documents)
    hand.shuffle(shuffled)
    cuts = sorted(data.draw(st.lists(st.integers(0, 30), max_size=4)))
    assert names_kept(shuffled, cuts, data.draw(st.sampled_from([1, 2, 7]))) == expected
    assert len(expected) + sum(copies for _, copies in expected) == 30


def test_equal_texts_keep_the_lowest_hash_and_say_how_many_fell(tmp_path: Path) -> None:
    units = [
        [("a", "same text of a few words"), ("b", "another text altogether here")],
        [("c", "same text of a few words")],
    ]
    result = deduplicate(corpus_of(tmp_path, units))
    lowest = min((digest("a"), 0), (digest("c"), 2))[1]
    assert result.fates.tolist() == [EXACT if at == 2 - lowest and at != 1 else KEPT for at in range(3)]
    assert result.copies == {lowest: 1}


def test_an_empty_corpus_and_an_empty_unit(tmp_path: Path) -> None:
    assert deduplicate(corpus_of(tmp_path, [[]])).fates.tolist() == []
    (tmp_path / "b").mkdir()
    assert deduplicate(corpus_of(tmp_path / "b", [[], [("a", "one")], []])).fates.tolist() == [KEPT]


def test_a_large_group_of_unlike_texts_is_cut_by_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "_alike", lambda corpus, left, right, threshold: np.zeros(len(left), dtype=bool))
    corpus = corpus_of(tmp_path, [[(str(number), "the same words again") for number in range(100)]])
    assert len(near_duplicates(corpus, 0, 0, 1, 0.7)) == 0


@settings(deadline=None, max_examples=60)
@given(edges=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_joining_equals_a_plain_union(edges: list[tuple[int, int]]) -> None:
    parents = np.arange(31, dtype=np.int64)
    half = len(edges) // 2
    for part in (edges[:half], edges[half:]):
        join(parents, np.array(part, dtype=np.int64).reshape(-1, 2))
    plain = list(range(31))
    for left, right in edges:
        low, high = sorted((plain[left], plain[right]))
        plain = [low if root == high else root for root in plain]
    assert find(parents, np.arange(31)).tolist() == plain


def test_signatures_never_change() -> None:
    # The value is part of what a dataset means: it may only change with the format of the work folder.
    signature = HASHER.signature("The quick brown fox jumps over the lazy dog, 12 times.")
    assert hashlib.sha256(signature.astype("<u4").tobytes()).hexdigest()[:16] == SIGNATURE
    assert (signature == HASHER.signature("the QUICK brown fox jumps over the lazy dog 7 times")).all()


def test_benchmark_texts_are_found_in_documents(tmp_path: Path) -> None:
    question = "If a train leaves the station at noon and travels north at forty miles per hour, when does it arrive?"
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": question, "choices": ["yes", "no"]}))
    (tmp_path / "b.txt").write_text("What is the capital city of that small country?\nshort one\n")
    known = load_benchmarks([str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt")], 13)
    assert known.match("Intro. " + question.upper().replace(",", " -") + " Outro") is not None
    assert known.match("So I asked: what is the capital city of that small country, please?") is not None
    assert known.match("If a train leaves the station at noon and travels south at forty miles") is None
    assert known.match("short one") is None
    assert load_benchmarks([], 13).match(question) is None
    (tmp_path / "c.txt").write_text("too short\n")
    with pytest.raises(UserError, match="hold no text"):
        load_benchmarks([str(tmp_path / "c.txt")], 13)
    with pytest.raises(UserError, match="cannot be read"):
        load_benchmarks([str(tmp_path / "absent.txt")], 13)
