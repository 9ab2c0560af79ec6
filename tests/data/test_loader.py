"""Batches: every rank layout serves the same samples, held-out text stays held out, state resumes exactly."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.data.accounting import account
from isthmus.data.audit import Journal, attempts, audit
from isthmus.data.config import DataConfig, PhaseConfig, SourceConfig
from isthmus.data.corpus import Corpus, build_corpus
from isthmus.data.loader import MixtureLoader, validate_corpus
from isthmus.data.shares import Division, divide
from isthmus.errors import UserError

SEQUENCE, BATCH, STEPS = 16, 8, 12


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("corpus")
    for name, words in (("first", "one two three four five"), ("second", "red green blue")):
        for number in range(12):
            path = root / name / f"{number:02d}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{name} {number}: " + f"{words} {number} " * 40)
    return DataConfig(
        sources={
            "first": SourceConfig(path=str(root / "first"), weight=3.0),
            "second": SourceConfig(path=str(root / "second"), weight=1.0, max_epochs=2.0),
        },
        held_out=0.2,
        cache_dir=str(root / "cache"),
    )


@pytest.fixture(scope="module")
def corpus(config: DataConfig) -> Corpus:
    return build_corpus(config, vocab_size=300)


def loader(
    corpus: Corpus, config: DataConfig, *, steps: int = STEPS, batch: int = BATCH, **where: Any
) -> MixtureLoader:
    division = where.pop("division", Division())
    mixture = validate_corpus(
        corpus, config, sequence_length=SEQUENCE, global_batch=batch, steps=steps, seed=5, held_out=True
    )
    return MixtureLoader(
        corpus,
        mixture,
        config,
        sequence_length=SEQUENCE,
        global_batch=batch,
        micro_batch=where.pop("micro_batch", 1),
        division=division,
        **where,
    )


def rows(loader: MixtureLoader, steps: int) -> list[list[int]]:
    return [row.tolist() for _ in range(steps) for batch in loader.next_step() for row in batch.tokens_BS]


def everywhere(
    corpus: Corpus, config: DataConfig, division: Division, state: dict[str, Any] | None = None, **more: Any
) -> list[MixtureLoader]:
    """Return the loaders of all ranks of all sites, in the order of their samples."""
    loaders = [
        loader(corpus, config, division=division, site=site, rank=rank, **more)
        for site in range(len(division.shares))
        for rank in range(division.ranks)
    ]
    for entry in loaders:
        if state:
            entry.load_state_dict(state)
    return loaders


@pytest.mark.parametrize(
    "division",
    [Division(2), Division(8), Division(1, (1, 1)), Division(2, (1, 1)), Division(1, (5, 3)), Division(2, (3, 1))],
)
def test_any_division_serves_the_same_samples(corpus: Corpus, config: DataConfig, division: Division) -> None:
    alone = rows(loader(corpus, config, micro_batch=2), steps=3)
    ranks = everywhere(corpus, config, division)
    for step in range(3):
        together = [row for rank in ranks for row in rows(rank, steps=1)]
        assert together == alone[step * BATCH : (step + 1) * BATCH]


def test_labels_are_the_next_tokens(corpus: Corpus, config: DataConfig) -> None:
    for batch in loader(corpus, config, micro_batch=4).next_step():
        assert torch.equal(batch.tokens_BS[:, 1:], batch.labels_BS[:, :-1])
        assert batch.mask_BS.sum() == batch.mask_BS.numel()
        assert batch.tokens_BS.is_contiguous()


def test_workers_outlive_a_request_to_stop(corpus: Corpus, config: DataConfig) -> None:
    """Slurm sends it to every process; the rank wants to finish its step."""
    served, expected = loader(corpus, replace(config, workers=2)), loader(corpus, config)
    assert rows(served, steps=1) == rows(expected, steps=1)
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    for worker in workers:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            os.kill(worker.pid or 0, number)
    assert rows(served, steps=STEPS - 1) == rows(expected, steps=STEPS - 1)


@pytest.mark.parametrize(
    ("division", "workers"), [(Division(1), 3), (Division(2), 0), (Division(1, (1, 1)), 0), (Division(2, (3, 1)), 1)]
)
def test_state_resumes_with_other_workers_ranks_and_sites(
    corpus: Corpus, config: DataConfig, division: Division, workers: int
) -> None:
    uninterrupted = loader(corpus, config)
    rows(uninterrupted, steps=5)
    expected = rows(uninterrupted, steps=2)
    before = loader(corpus, replace(config, workers=1))
    rows(before, steps=5)  # its worker has read ahead of that
    state = json.loads(json.dumps(before.state_dict()))
    after = everywhere(corpus, replace(config, workers=workers), division, state)
    assert [row for _ in range(2) for rank in after for row in rows(rank, steps=1)] == expected


def test_weights_decide_the_mix(corpus: Corpus, config: DataConfig) -> None:
    source = loader(corpus, config)
    rows(source, steps=4)
    assert source.mix() == {"first": 24, "second": 8}  # 3 : 1 of 32


def test_an_epoch_holds_every_window_once(corpus: Corpus, config: DataConfig) -> None:
    stream = corpus.sources["second"].train
    windows = stream.windows(SEQUENCE)
    sources = {name: replace(entry, max_epochs=None) for name, entry in config.sources.items()}
    source = loader(corpus, replace(config, sources=sources))
    batches = [batch for _ in range(-(-windows * 4 // BATCH)) for batch in source.next_step()]
    served = [
        tuple(row.tolist())
        for batch in batches
        for row, name in zip(batch.tokens_BS, batch.sources, strict=True)
        if name == "second"
    ]
    expected = sorted(tuple(stream.array[i * SEQUENCE : (i + 1) * SEQUENCE].tolist()) for i in range(windows))
    assert sorted(served[:windows]) == expected


def test_an_edited_mixture_begins_at_the_current_sample(corpus: Corpus, config: DataConfig, tmp_path: Path) -> None:
    before = loader(corpus, config)
    rows(before, steps=3)
    told: list[str] = []
    sources = {name: replace(source, weight=1.0) for name, source in config.sources.items()}
    edited = loader(corpus, replace(config, sources=sources), tell=told.append, journal=None)
    edited.load_state_dict(before.state_dict())
    old, new = before.log.entries[0].fingerprint, edited.log.entries[1].fingerprint
    assert [entry.start for entry in edited.log.entries] == [0, 24]
    assert old != new
    assert old in told[0]
    assert new in told[0]
    rows(edited, steps=3)
    assert edited.mix() == {"first": 18 + 12, "second": 6 + 12}
    # Nothing is replayed, nothing is left out: each source goes on with the next of its windows.
    positions = [edited.order[sample] for sample in range(48)]
    for name in ("first", "second"):
        served = [entry.window for entry in positions if entry.source == name]
        alone = loader(corpus, config, steps=100)
        expected = [entry.window for entry in map(alone.order.__getitem__, range(400)) if entry.source == name]
        assert served == expected[: len(served)]
    again = loader(corpus, replace(config, sources=sources))
    again.load_state_dict(edited.state_dict())
    assert len(again.log.entries) == 2


def test_the_real_floor_holds_for_what_is_left_to_an_edited_mixture(corpus: Corpus, config: DataConfig) -> None:
    """The real source has given nearly all that its cap allows, which a plan from the first sample does not know."""
    corpus = replace(corpus, sources=corpus.sources | {"second": replace(corpus.sources["second"], made=True)})
    capped = replace(config.sources["first"], max_epochs=1.0)
    made = replace(config.sources["second"], max_epochs=None)
    epoch = corpus.sources["first"].train.windows(SEQUENCE)

    def mixed(first: float, second: float, floor: float = 0.5) -> DataConfig:
        sources = {"first": replace(capped, weight=first), "second": replace(made, weight=second)}
        return replace(config, sources=sources, real_floor=floor)

    steps = epoch // BATCH
    state = loader(corpus, mixed(99, 1), steps=steps).state_dict() | {"samples": (steps - 1) * BATCH}
    edited = mixed(1, 1)
    plan = validate_corpus(
        corpus, edited, sequence_length=SEQUENCE, global_batch=BATCH, steps=2 * steps, seed=5, held_out=True
    )
    assert account(plan, {"second": True}, 0.5).phases[0].real_share({"second": True}) >= 0.5
    with pytest.raises(UserError, match=r"data.real_floor: whole run from sample \d+ on has .* \(synthetic: second\)"):
        loader(corpus, edited, steps=2 * steps).load_state_dict(state)
    loader(corpus, mixed(1, 1, floor=0.0), steps=2 * steps).load_state_dict(state)


def test_a_longer_run_of_the_same_mixture_is_no_edit(corpus: Corpus, config: DataConfig) -> None:
    plain = replace(config, sources={name: replace(entry, max_epochs=None) for name, entry in config.sources.items()})
    before = loader(corpus, plain)
    rows(before, steps=3)
    after = loader(corpus, plain, steps=2 * STEPS)
    after.load_state_dict(before.state_dict())
    assert len(after.log.entries) == 1


def test_other_data_under_the_same_name_is_refused(corpus: Corpus, config: DataConfig) -> None:
    state = loader(corpus, config).state_dict()
    state["log"][0]["mixture"]["sources"]["second"][0] = "what it was"
    with pytest.raises(UserError, match=r"data\.sources\.second: holds other data .*what it was"):
        loader(corpus, replace(config, skip=[[0, 1]], phases=[PhaseConfig(weights={"first": 2.0})])).load_state_dict(
            state
        )


def test_skipped_samples_have_no_loss_and_move_nothing(corpus: Corpus, config: DataConfig) -> None:
    plain, skipping = loader(corpus, config), loader(corpus, replace(config, skip=[[3, 5], [8, 16]]))
    for step in range(3):
        for sample, (ours, theirs) in enumerate(
            zip(plain.next_step(), skipping.next_step(), strict=True), step * BATCH
        ):
            assert torch.equal(ours.tokens_BS, theirs.tokens_BS)
            masked = sample in (3, 4) or 8 <= sample < 16
            assert theirs.mask_BS.sum() == (0 if masked else SEQUENCE)


def test_samples_left_out_later_are_in_the_state(corpus: Corpus, config: DataConfig) -> None:
    config = replace(config, skip=[[3, 5]])
    first = loader(corpus, config)
    first.next_step()
    first.skip_samples([range(BATCH + 1, BATCH + 3), range(3, 5)])
    second = loader(corpus, config)
    second.load_state_dict(first.state_dict())
    second.skip_samples([range(BATCH + 1, BATCH + 3)])  # told twice
    assert second.state_dict()["skip"] == [[BATCH + 1, BATCH + 3]]  # the others are the configuration's
    for served in (first, second):
        tokens = [int(batch.mask_BS.sum()) for batch in served.next_step()]
        assert tokens == [0 if sample in (1, 2) else SEQUENCE for sample in range(BATCH)]


def test_a_lost_sites_samples_can_be_handed_out_again(corpus: Corpus, config: DataConfig) -> None:
    division = Division(1, (1, 2, 1))
    ranks = everywhere(corpus, config, division)
    lost = division.of_rank(range(0, BATCH), site=1, rank=0)
    served = rows(ranks[1], steps=1)
    again = [
        row.tolist() for part in divide(lost, [1, 1]) for batch in ranks[0].samples(part) for row in batch.tokens_BS
    ]
    assert again == served
    assert len(rows(ranks[0], steps=1)) == 2


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_sample_is_consumed_once_over_restarts_resizes_and_edits(
    corpus: Corpus, config: DataConfig, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Random attempts: each begins at the last checkpoint, some steps before the end of the one before."""
    run = tmp_path_factory.mktemp("run")
    state: dict[str, Any] | None = None
    for number in range(data.draw(st.integers(1, 4), "attempts")):
        ranks = data.draw(st.sampled_from([1, 2]), "ranks")
        shares = data.draw(st.sampled_from([(1,), (1, 1), (3, 1)]), "shares")
        batch = data.draw(st.sampled_from([8, 16]), "batch")
        weight = data.draw(st.sampled_from([1.0, 2.0, 0.25]), "weight")
        sources = {name: replace(source, max_epochs=None) for name, source in config.sources.items()}
        sources["second"] = replace(sources["second"], weight=weight)
        edited = replace(config, sources=sources)
        loaders = []
        for site in range(len(shares)):
            journals = [
                Journal(run / f"site{site}", rank, writes_attempts=rank == 0, log_samples=True) for rank in range(ranks)
            ]
            loaders += [
                loader(
                    corpus, edited, batch=batch, division=Division(ranks, shares), site=site, rank=rank, journal=journal
                )
                for rank, journal in enumerate(journals)
            ]
        if number and len(shares) < len(list(run.glob("site*"))):
            break  # a site that left has no log of having taken its samples back
        for entry in loaders:
            if state is not None:
                entry.load_state_dict(state)
        steps = data.draw(st.integers(1, 4), "steps")
        saved = data.draw(st.integers(0, steps), "saved")
        for step in range(steps + 1):
            if step == saved:
                state = loaders[0].state_dict()
                assert all(entry.state_dict() == state for entry in loaders)
            if step < steps:
                for entry in loaders:
                    entry.next_step()
    found = audit(run)
    assert found.clean, found
    last = attempts(run / "site0")[-1]
    assert found.end == last.sample + steps * last.global_batch or number
    log = run / "site0" / "samples" / "rank-00000.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines, lines[-1]]) + "\n")
    assert audit(run).repeated
    if len(lines) > 2 and lines[-2].startswith("["):
        log.write_text("\n".join([*lines[:-2], lines[-1]]) + "\n")
        assert audit(run).missing


@pytest.mark.parametrize("data_size", [1, 2, 3])
def test_held_out_windows_are_shared_out_and_padded(corpus: Corpus, config: DataConfig, data_size: int) -> None:
    parts = [
        loader(corpus, config, micro_batch=2).held_out(5, multiple=2, part=rank, parts=data_size)
        for rank in range(data_size)
    ]
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
        trained = decode(source.train.array.tolist(), skip_special_tokens=False)
        for document in decode(source.held_out.array.tolist(), skip_special_tokens=False).split("<|endofdocument|>"):
            heading = document.split(":")[0]
            assert not heading or f"{heading}:" not in trained
    assert sum(len(source.held_out) for source in corpus.sources.values()) > 0


def test_tokens_come_from_the_cache_unchanged(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 50)
    (tmp_path / "b.txt").write_text("other words " * 50)
    config = DataConfig(sources={"text": SourceConfig(path=str(tmp_path / "*.txt"))}, cache_dir=str(tmp_path / "cache"))
    first, second = build_corpus(config, 300), build_corpus(config, 300)
    assert np.array_equal(first.sources["text"].train.array, second.sources["text"].train.array)
    before = first.sources["text"]
    (tmp_path / "a.txt").write_text("changed words " * 50)
    after = build_corpus(config, 300).sources["text"]
    # One of the two documents is held out.
    same = np.array_equal(after.train.array, before.train.array) and np.array_equal(
        after.held_out.array, before.held_out.array
    )
    assert not same, "the cache answered for a text that has changed"


def test_caps_that_leave_too_few_samples_are_refused(corpus: Corpus, config: DataConfig) -> None:
    capped = replace(config, sources={name: replace(entry, max_epochs=2.0) for name, entry in config.sources.items()})
    windows = {name: source.train.windows(SEQUENCE) for name, source in corpus.sources.items()}
    enough = 2 * sum(windows.values()) // BATCH
    loader(corpus, capped, steps=enough)
    message = rf"needs {(enough + 1) * BATCH:,} samples, and max_epochs leaves {2 * sum(windows.values()):,}"
    with pytest.raises(UserError, match=message):
        loader(corpus, capped, steps=enough + 1)


def test_documents_are_told_apart(corpus: Corpus, config: DataConfig) -> None:
    masking = loader(corpus, replace(config, mask_documents=True), steps=10**4)
    crossed = 0
    for batch in (batch for _ in range(100) for batch in masking.next_step()):
        ends = batch.tokens_BS == corpus.end
        assert batch.documents_BS is not None
        assert torch.equal(batch.mask_BS, 1.0 - ends.float())
        assert torch.equal(batch.documents_BS.diff(dim=1), ends[:, :-1].int())
        crossed += int(ends[:, :-1].sum())
    assert crossed
