"""The rules decide as datatrove's do, on thousands of damaged documents, and every difference has its reason."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.mutants import mutated_documents

from isthmus.data.filters.c4 import c4, count_sentences
from isthmus.data.filters.config import C4Rules, FineWebRules, GopherQuality, GopherRepetition
from isthmus.data.filters.fineweb import fineweb
from isthmus.data.filters.gopher import gopher_quality, gopher_repetition
from isthmus.data.filters.text import TextView

pytest.importorskip("datatrove", reason="datatrove comes with the test extra")
COUNT = 4_000

# datatrove's names for our reasons.
REPETITION = {
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_characters",
    **{f"top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_gram" for n in range(5, 11)},
}
QUALITY = {
    "gopher_short_doc": "too_few_words",
    "gopher_long_doc": "too_many_words",
    "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "hash_signs",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "words_without_letters",
    "gopher_enough_stop_words": "stop_words",
}
FINEWEB = {
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_line_characters",
    "list_ratio": "newlines_per_word",
}


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(mutated_documents(COUNT, seed=11))


@pytest.fixture(autouse=True)
def same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words and sentences are split as ours: spaCy's splitter is a difference of its own (docs/prepare.md)."""
    import importlib

    for name in ("gopher_repetition_filter", "gopher_quality_filter", "fineweb_quality_filter", "c4_filters"):
        module = importlib.import_module(f"datatrove.pipeline.filters.{name}")
        if hasattr(module, "split_into_words"):
            monkeypatch.setattr(module, "split_into_words", lambda text, language: TextView(text).words)
        if hasattr(module, "split_into_sentences"):
            monkeypatch.setattr(module, "split_into_sentences", lambda text, language: ["s"] * count_sentences(text))


def theirs(rule: Any, text: str) -> tuple[str | None, str]:
    from datatrove.data import Document

    document = Document(text=text, id="0")
    answer = rule.filter(document)
    return (answer[1] if isinstance(answer, tuple) else None), document.text


def compare(documents: list[str], rule: Any, ours: Callable[[TextView], str | None], names: dict[str, str]) -> Counter:
    """Assert equal decisions and reasons, and return how often each was met."""
    met: Counter[str] = Counter()
    for text in documents:
        reason, _ = theirs(rule, text)
        expected = names.get(reason, reason) if reason else None
        found = ours(TextView(text))
        assert found == expected, text
        met[found or "kept"] += 1
    return met


def test_gopher_repetition_agrees_in_every_document(documents: list[str]) -> None:
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

    rules = GopherRepetition()
    met = compare(documents, GopherRepetitionFilter(), lambda view: gopher_repetition(view, rules), REPETITION)
    assert {"kept", "duplicate_lines", "duplicate_line_characters", "top_2_gram", "duplicate_5_gram"} <= met.keys()


def test_gopher_quality_agrees_but_for_symbols_that_datatrove_takes_for_words(documents: list[str]) -> None:
    from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
    from datatrove.utils.text import PUNCTUATION_SET

    rules, rule = GopherQuality(), GopherQualityFilter()
    met: Counter[str] = Counter()
    for text in documents:
        view = TextView(text)
        reason, _ = theirs(rule, text)
        found = gopher_quality(view, rules)
        expected = QUALITY[reason] if reason else None
        if found != expected:
            # Its list of punctuation lacks some symbols (emoji, arrows, box drawing, the typographic apostrophe) and
            # has the underscore and digits-like marks; ours are all characters that are no letter, digit or underscore.
            assert {found, expected} & {"too_few_words", "short_words", "long_words"}, text
            assert any(
                (word not in view.spoken_words) != all(c in PUNCTUATION_SET for c in word) for word in view.words
            )
            met["explained"] += 1
        met[found or "kept"] += 1
    assert met["explained"] < COUNT / 200
    assert {"kept", "too_few_words", "hash_signs", "ellipses", "bullet_lines", "ellipsis_lines"} <= met.keys()
    assert {"stop_words", "words_without_letters", "short_words"} <= met.keys()


def test_fineweb_agrees_but_for_a_few_rare_terminators(documents: list[str]) -> None:
    from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter

    # Khmer signs in datatrove's list that Unicode no longer has, and 16 of Unicode that its list lacks: none in here.
    rules = FineWebRules()
    met = compare(documents, FineWebQualityFilter(), lambda view: fineweb(view, rules), FINEWEB)
    assert {"kept", *FINEWEB.values()} <= met.keys()


@pytest.mark.parametrize("terminal", [False, True])
def test_c4_agrees_and_leaves_the_same_text(terminal: bool, documents: list[str]) -> None:
    from datatrove.pipeline.filters.c4_filters import C4QualityFilter

    rules, rule = C4Rules(terminal_punctuation=terminal), C4QualityFilter(filter_no_terminal_punct=terminal)
    met: Counter[str] = Counter()
    for text in documents:
        reason, remaining = theirs(rule, text)
        kept, found = c4(TextView(text), rules)
        assert found == reason, text
        if found is None:
            assert kept == remaining
            met["changed"] += kept != text
        met[found or "kept"] += 1
    assert {"kept", "changed", "too_few_sentences", "lorem_ipsum", "curly_bracket"} <= met.keys()
