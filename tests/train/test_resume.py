"""Resume is exact: a run that was broken off and started again equals the one that was not."""

from pathlib import Path

import numpy as np
import pytest
from support.engines import assemble
from support.ranks import run_ranks, run_sites
from support.runs import assert_equal_states, train_run

QUIET = ["checkpoint.every_steps=0"]
SAVING = ["checkpoint.every_steps=4", "checkpoint.asynchronous=false"]  # what is killed has no save under way


LAYOUTS = {
    "one rank, bf16": (1, ["train.precision=bf16"]),
    "TP 2": (2, ["parallel.tensor=2"]),
    "PP 2": (2, ["parallel.pipeline=2"]),
    "DP 2, sharded optimizer": (2, []),
    "DP 2, plain optimizer": (2, ["parallel.distributed_optimizer=false"]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_and_resumed_equals_uninterrupted(layout: str, tmp_path: Path, shared_cache: Path) -> None:
    ranks, words = LAYOUTS[layout]
    words = [*words, f"data.cache_dir={shared_cache}"]
    quiet = run_ranks(train_run, ranks, str(tmp_path / "quiet"), None, [*words, *QUIET])
    broken = run_ranks(train_run, ranks, str(tmp_path / "runs"), 6, [*words, *SAVING])
    resumed = run_ranks(train_run, ranks, str(tmp_path / "runs"), None, [*words, "checkpoint.every_steps=4"])
    for one, before, after in zip(quiet, broken, resumed, strict=True):
        assert sorted(after["losses"]) == [5, 6, 7, 8, 9, 10]
        assert {**before["losses"], **after["losses"]} == one["losses"]
        assert {**before["samples"], **after["samples"]} == one["samples"]
        assert_equal_states(one, after)


SITES = {
    "exact": ["sync=exact", "sync.wire=int8"],
    "local in mid-round": [
        *("sync=local", "sync.wire=int4", "sync.every=4", "sync.fragments=2", "sync.overlap_steps=3"),
        *("sync.merge=0.5", "sync.outer_learning_rate=0.7", "sync.outer_momentum=0.9"),
    ],
}


@pytest.mark.parametrize("method", SITES)
def test_two_sites_resume_exactly(method: str, tmp_path: Path, shared_cache: Path) -> None:
    words = [*SITES[method], f"data.cache_dir={shared_cache}"]
    quiet = run_sites(train_run, 2, 1, str(tmp_path / "quiet"), None, [*words, *QUIET])
    # With H 4, P 2 and tau 3, a fragment sent at step 4 is under way at step 5.
    run_sites(
        train_run,
        2,
        1,
        str(tmp_path / "runs"),
        7,
        [*words, "checkpoint.every_steps=5", "checkpoint.asynchronous=false"],
    )
    resumed = run_sites(train_run, 2, 1, str(tmp_path / "runs"), None, [*words, "checkpoint.every_steps=5"])
    for (one,), (after,) in zip(quiet, resumed, strict=True):
        assert sorted(after["losses"]) == [6, 7, 8, 9, 10]
        assert after["losses"] == {step: one["losses"][step] for step in after["losses"]}
        assert after["samples"] == {step: one["samples"][step] for step in after["samples"]}
        assert_equal_states(one, after)


MOVES = {
    "TP 2 -> 1": ((2, ["parallel.tensor=2"]), (1, [])),
    "PP 1 -> 2": ((1, []), (2, ["parallel.pipeline=2"])),
    "DP 2 -> 4": ((2, []), (4, [])),
    "TP 1 x PP 2 -> TP 2 x DP 2": ((2, ["parallel.pipeline=2"]), (4, ["parallel.tensor=2"])),
}


@pytest.mark.parametrize("move", MOVES)
def test_another_topology_goes_on_with_the_same_samples_and_losses(
    move: str, tmp_path: Path, shared_cache: Path
) -> None:
    (before, here), (after, there) = MOVES[move]
    cache = f"data.cache_dir={shared_cache}"
    (quiet,) = run_ranks(train_run, 1, str(tmp_path / "quiet"), None, [cache, "checkpoint.every_steps=0"])
    run_ranks(
        train_run,
        before,
        str(tmp_path / "runs"),
        6,
        [cache, *here, *SAVING],
    )
    resumed = run_ranks(train_run, after, str(tmp_path / "runs"), None, [cache, *there, "checkpoint.every_steps=4"])
    losses = resumed[0]["losses"]
    assert sorted(losses) == [5, 6, 7, 8, 9, 10]
    for step, (loss, _) in losses.items():
        assert loss == pytest.approx(quiet["losses"][step][0], rel=1e-4)
    for step in losses:
        readers = resumed[:: after // _data(there, after)]
        samples = sorted(sample for rank in readers for sample in rank["samples"][step])
        assert samples == sorted(quiet["samples"][step])
    assemble([rank["state"]["exp_avg"] for rank in resumed])


def _data(words: list[str], ranks: int) -> int:
    split = [int(word.partition("=")[2]) for word in words if word.startswith(("parallel.tensor", "parallel.pipeline"))]
    return ranks // int(np.prod(split or [1]))


def test_another_schedule_of_rounds_is_taken_and_named(tmp_path: Path, shared_cache: Path) -> None:
    words = [*SITES["local in mid-round"], f"data.cache_dir={shared_cache}"]
    run_sites(train_run, 2, 1, str(tmp_path / "runs"), 6, [*words, *SAVING, "checkpoint.every_steps=5"])
    changed = [*words, *SAVING, "sync.fragments=1", "sync.wire=bf16", "checkpoint.every_steps=0"]
    for (after,) in run_sites(train_run, 2, 1, str(tmp_path / "runs"), None, changed):
        assert sorted(after["losses"]) == [6, 7, 8, 9, 10]
        # Sent at step 4 and due at 7: it was dropped, and said so.
        assert "not exact: sync.fragments has changed, sync.wire has changed" in after["told"]
        assert "the rounds under way are dropped" in after["told"]


def test_one_sites_checkpoint_starts_two(tmp_path: Path, shared_cache: Path) -> None:
    cache = f"data.cache_dir={shared_cache}"
    run_ranks(train_run, 1, str(tmp_path / "one"), 6, [cache, *SAVING])
    words = [*SITES["local in mid-round"], cache, f"checkpoint.resume={tmp_path}/one/r", "checkpoint.every_steps=0"]
    for (after,) in run_sites(train_run, 2, 1, str(tmp_path / "two"), None, words):
        assert sorted(after["losses"]) == [5, 6, 7, 8, 9, 10]
    back = [cache, f"checkpoint.resume={tmp_path}/two/r/site1", "checkpoint.every_steps=0", "train.steps=12"]
    (single,) = run_ranks(train_run, 1, str(tmp_path / "back"), None, back)
    assert sorted(single["losses"]) == [11, 12]
    assert "what local sync of 2 site(s) kept is dropped" in single["told"]
