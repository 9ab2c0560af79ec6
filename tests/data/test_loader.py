"""Batches: every rank layout serves the same samples, held-out text stays held out, state resumes exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from isthmus.data.config import DataConfig, SourceConfig
from isthmus.data.corpus import Corpus, build_corpus, window_counts
from isthmus.data.loader import MixtureLoader, validate_corpus
from isthmus.errors import UserError

SEQUENCE, BATCH = 16, 8


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("corpus")
    for name, words in (("first", "one two three four five"), ("second", "red green blue")):
        for number in range(12):
            path = root / name / f"{number:02d}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{name} {number}: " + f"{words} {number} " * 40)
    config = DataConfig(
        sources={
            "first": SourceConfig(path=str(root / "first"), weight=3.0),
            "second": SourceConfig(path=str(root / "second"), weight=1.0, max_epochs=2.0),
        },
        held_out=0.2,
        cache_dir=str(root / "cache"),
    )
    return build_corpus(config, vocab_size=300)


def loader(corpus: Corpus, data_rank: int = 0, data_size: int = 1, micro_batch: int = 2) -> MixtureLoader:
    return MixtureLoader(
        corpus,
        sequence_length=SEQUENCE,
        global_batch=BATCH,
        micro_batch=micro_batch,
        data_rank=data_rank,
        data_size=data_size,
        seed=5,
    )


def rows(loader: MixtureLoader, steps: int) -> list[list[int]]:
    return [row.tolist() for _ in range(steps) for batch in loader.next_step() for row in batch.tokens_BS]


@pytest.mark.parametrize(("data_size", "micro_batch"), [(2, 1), (4, 2), (8, 1)])
def test_any_number_of_ranks_serves_the_same_samples(corpus: Corpus, data_size: int, micro_batch: int) -> None:
    alone = rows(loader(corpus), steps=3)
    ranks = [loader(corpus, rank, data_size, micro_batch) for rank in range(data_size)]
    for step in range(3):
        together = [row for rank in ranks for row in rows(rank, steps=1)]
        assert together == alone[step * BATCH : (step + 1) * BATCH]


def test_labels_are_the_next_tokens(corpus: Corpus) -> None:
    for batch in loader(corpus).next_step():
        assert torch.equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
        assert batch.mask_BS.sum() == batch.mask_BS.numel()


def test_state_resumes_on_another_number_of_ranks(corpus: Corpus) -> None:
    uninterrupted = loader(corpus)
    rows(uninterrupted, steps=5)
    expected = rows(uninterrupted, steps=1)
    before = loader(corpus)
    rows(before, steps=5)
    after = [loader(corpus, rank, 2) for rank in range(2)]
    for rank in after:
        rank.load_state_dict(before.state_dict())
    assert [row for rank in after for row in rows(rank, steps=1)] == expected


def test_weights_decide_the_mix(corpus: Corpus) -> None:
    source = loader(corpus)
    rows(source, steps=4)
    assert source.mix() == {"first": 24, "second": 8}  # 3 : 1 of 32


def test_an_epoch_holds_every_window_once(corpus: Corpus) -> None:
    windows = window_counts({"second": corpus.sources["second"].train}, SEQUENCE)["second"]
    stream = corpus.sources["second"].train
    source = loader(corpus)
    batches = [batch for _ in range(-(-windows * 4 // BATCH)) for batch in source.next_step()]
    served = [
        tuple(row.tolist())
        for batch in batches
        for row, name in zip(batch.tokens_BS, batch.sources, strict=True)
        if name == "second"
    ]
    expected = sorted(tuple(stream[i * SEQUENCE : (i + 1) * SEQUENCE].tolist()) for i in range(windows))
    assert sorted(served[:windows]) == expected


@pytest.mark.parametrize("data_size", [1, 2, 3])
def test_held_out_windows_are_shared_out_and_padded(corpus: Corpus, data_size: int) -> None:
    parts = [loader(corpus).held_out(5, multiple=2, part=rank, parts=data_size) for rank in range(data_size)]
    assert len({len(part) for part in parts}) == 1, "ranks must run the same number of forward passes"
    assert len(parts[0]) % 2 == 0
    counts = {"first": 0, "second": 0, "": 0}
    for batch in (batch for part in parts for batch in part):
        for source, mask in zip(batch.sources, batch.mask_BS, strict=True):
            counts[source] += 1
            assert mask.sum() == (SEQUENCE if source else 0)
    assert counts["first"] == counts["second"] == 5


def test_held_out_documents_are_not_trained_on(corpus: Corpus) -> None:
    decode = corpus.tokenizer.decode
    for source in corpus.sources.values():
        trained = decode(source.train.tolist(), skip_special_tokens=False)
        for document in decode(source.held_out.tolist(), skip_special_tokens=False).split("<|endofdocument|>"):
            heading = document.split(":")[0]
            assert not heading or f"{heading}:" not in trained
    assert sum(len(source.held_out) for source in corpus.sources.values()) > 0


def test_tokens_come_from_the_cache_unchanged(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 50)
    (tmp_path / "b.txt").write_text("other words " * 50)
    config = DataConfig(sources={"text": SourceConfig(path=str(tmp_path / "*.txt"))}, cache_dir=str(tmp_path / "cache"))
    first, second = build_corpus(config, 300), build_corpus(config, 300)
    assert np.array_equal(first.sources["text"].train, second.sources["text"].train)
    before = first.sources["text"]
    (tmp_path / "a.txt").write_text("changed words " * 50)
    after = build_corpus(config, 300).sources["text"]
    # One of the two documents is held out.
    same = np.array_equal(after.train, before.train) and np.array_equal(after.held_out, before.held_out)
    assert not same, "the cache answered for a text that has changed"


def test_more_epochs_than_allowed_are_refused(corpus: Corpus) -> None:
    windows = window_counts({"second": corpus.sources["second"].train}, SEQUENCE)["second"]
    allowed = 2 * windows * 4 // BATCH
    arguments = {"sequence_length": SEQUENCE, "global_batch": BATCH, "seed": 5, "held_out": True}
    validate_corpus(corpus, steps=allowed - 1, **arguments)
    with pytest.raises(UserError, match=r"data\.sources\.second\.max_epochs: .* times, 2 are allowed"):
        validate_corpus(corpus, steps=allowed + 2, **arguments)
