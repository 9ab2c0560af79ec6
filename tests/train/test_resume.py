"""Resume is exact: a run that was broken off and started again equals the one that was not."""

import functools
import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import assemble
from support.ranks import run_ranks, run_sites
from support.runs import assert_equal_states, train_run

Seen = list[dict[str, Any]]  # what `train_run` brings back, a rank each
STEPS = 10
QUIET = ["checkpoint.every_steps=0"]
# What is killed has no save under way: what of it would have been durable is not for this test to say.
SAVING = ["checkpoint.every_steps=4", "checkpoint.asynchronous=false"]


class Runs:
    """Runs that several tests begin with, made once: quiet ones, and some that were killed at a random step."""

    def __init__(self, scratch: Path, cache: Path) -> None:
        # A batch that two, three and four ranks can share.
        self._scratch, self.common = scratch, [f"data.cache_dir={cache}", "train.global_batch=12"]
        self._numbers = itertools.count()
        seed = random.SystemRandom().randrange(2**32)
        self._random, self.seed = random.Random(seed), seed
        self.quiet = functools.cache(self._quiet)
        self._killed = functools.cache(self._kill)

    def killed(self, folder: Path, ranks: int, words: tuple[str, ...]) -> tuple[int, Seen]:
        """Put what a killed run has left into `folder`; return the step that it will resume, and what it did."""
        step, root, seen = self._killed(ranks, words)
        print(f"seed {self.seed}: killed after step {step}")
        shutil.copytree(root, folder)
        return (step - 1) // 4 * 4, seen

    def _quiet(self, ranks: int, words: tuple[str, ...]) -> Seen:
        return run_ranks(train_run, ranks, str(self._new()), None, [*self.common, *words, *QUIET])

    def _kill(self, ranks: int, words: tuple[str, ...]) -> tuple[int, Path, Seen]:
        step, root = self._random.randint(5, STEPS), self._new()
        return step, root, run_ranks(train_run, ranks, str(root), step, [*self.common, *words, *SAVING])

    def _new(self) -> Path:
        return self._scratch / f"{next(self._numbers)}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), shared_cache)


TP, PP, DP, ONE = ("parallel.tensor=2",), ("parallel.pipeline=2",), (), ()
LAYOUTS = {
    "one rank, bf16": (1, ("train.precision=bf16",)),
    "TP 2": (2, TP),
    "PP 2": (2, PP),
    "DP 2, sharded optimizer": (2, DP),
    "DP 2, plain optimizer": (2, ("parallel.distributed_optimizer=false",)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_and_resumed_equals_uninterrupted(layout: str, runs: Runs, tmp_path: Path) -> None:
    ranks, words = LAYOUTS[layout]
    quiet = runs.quiet(ranks, words)
    saved, broken = runs.killed(tmp_path / "runs", ranks, words)
    resumed = run_ranks(train_run, ranks, str(tmp_path / "runs"), None, [*runs.common, *words, SAVING[0]])
    for one, before, after in zip(quiet, broken, resumed, strict=True):
        assert sorted(after["losses"]) == list(range(saved + 1, STEPS + 1))
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


@pytest.fixture(scope="module")
def killed_sites(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], None]:
    """Put what two killed sites have left into a folder: step 5 is saved."""

    @functools.cache
    def made(method: str) -> Path:
        root = tmp_path_factory.mktemp("sites")
        # With H 4, P 2 and tau 3, a fragment sent at step 4 is under way at step 5.
        words = [*SITES[method], *runs.common, *SAVING, "checkpoint.every_steps=5"]
        run_sites(train_run, 2, 1, str(root), 7, words)
        return root

    return lambda method, folder: shutil.copytree(made(method), folder) and None


@pytest.mark.parametrize("method", SITES)
def test_two_sites_resume_exactly(
    method: str, runs: Runs, killed_sites: Callable[[str, Path], None], tmp_path: Path
) -> None:
    words = [*SITES[method], *runs.common]
    quiet = run_sites(train_run, 2, 1, str(tmp_path / "quiet"), None, [*words, *QUIET])
    killed_sites(method, tmp_path / "runs")
    resumed = run_sites(train_run, 2, 1, str(tmp_path / "runs"), None, [*words, "checkpoint.every_steps=5"])
    for (one,), (after,) in zip(quiet, resumed, strict=True):
        assert sorted(after["losses"]) == [6, 7, 8, 9, 10]
        assert after["losses"] == {step: one["losses"][step] for step in after["losses"]}
        assert after["samples"] == {step: one["samples"][step] for step in after["samples"]}
        assert_equal_states(one, after)


def test_a_site_that_has_lost_its_disk_takes_the_other_ones_checkpoint(
    runs: Runs, killed_sites: Callable[[str, Path], None], tmp_path: Path
) -> None:
    killed_sites("exact", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/r/site1")
    words = [*SITES["exact"], *runs.common, *QUIET]
    with pytest.raises(Exception, match=r"of no step that all of them have.*give the one of step 5 to all"):
        run_sites(train_run, 2, 1, str(tmp_path / "runs"), None, words)
    given = f"checkpoint.resume={tmp_path}/runs/r/site0"
    (first,), (second,) = run_sites(train_run, 2, 1, str(tmp_path / "runs"), None, [*words, given])
    assert sorted(first["losses"]) == sorted(second["losses"]) == [6, 7, 8, 9, 10]
    assert_equal_states(first, second)


def test_local_sites_do_not_become_exact_with_what_each_has(
    runs: Runs, killed_sites: Callable[[str, Path], None], tmp_path: Path
) -> None:
    killed_sites("local in mid-round", tmp_path / "runs")
    words = [*SITES["exact"], *runs.common, *QUIET]
    with pytest.raises(Exception, match="saved under sync=local"):
        run_sites(train_run, 2, 1, str(tmp_path / "runs"), None, words)


MOVES = {
    "TP 2 -> 1": ((2, TP), (1, ONE)),
    "PP 1 -> 2": ((1, ONE), (2, PP)),
    "DP 2 -> 3": ((2, DP), (3, DP)),
    "PP 2 -> TP 2 x DP 2": ((2, PP), (4, TP)),
}


@pytest.mark.parametrize("move", MOVES)
def test_another_topology_goes_on_with_the_same_samples_and_losses(move: str, runs: Runs, tmp_path: Path) -> None:
    (before, here), (after, there) = MOVES[move]
    (quiet,) = runs.quiet(1, ONE)
    saved, _ = runs.killed(tmp_path / "runs", before, here)
    resumed = run_ranks(train_run, after, str(tmp_path / "runs"), None, [*runs.common, *there, *SAVING])
    losses = resumed[0]["losses"]
    assert sorted(losses) == list(range(saved + 1, STEPS + 1))
    for step, (loss, _) in losses.items():
        assert loss == pytest.approx(quiet["losses"][step][0], rel=1e-4)
    for step in losses:
        readers = resumed[:: after // _data(there, after)]
        samples = sorted(sample for rank in readers for sample in rank["samples"][step])
        assert samples == sorted(quiet["samples"][step])
    assemble([rank["state"]["exp_avg"] for rank in resumed])


def _data(words: tuple[str, ...], ranks: int) -> int:
    split = [int(word.partition("=")[2]) for word in words if word.startswith(("parallel.tensor", "parallel.pipeline"))]
    return ranks // int(np.prod(split or [1]))


def test_another_schedule_of_rounds_is_taken_and_named(
    runs: Runs, killed_sites: Callable[[str, Path], None], tmp_path: Path
) -> None:
    killed_sites("local in mid-round", tmp_path / "runs")
    words = [*SITES["local in mid-round"], *runs.common, *QUIET, "sync.fragments=1", "sync.wire=bf16"]
    for (after,) in run_sites(train_run, 2, 1, str(tmp_path / "runs"), None, words):
        assert sorted(after["losses"]) == [6, 7, 8, 9, 10]
        # Sent at step 4 and due at 7: it was dropped, and said so.
        assert "not exact: sync.fragments has changed, sync.wire has changed" in after["told"]
        assert "the rounds under way are dropped" in after["told"]


def test_one_sites_checkpoint_starts_two_and_twos_starts_one(runs: Runs, tmp_path: Path) -> None:
    saved, _ = runs.killed(tmp_path / "one", 1, ONE)
    words = [*SITES["local in mid-round"], *runs.common, f"checkpoint.resume={tmp_path}/one/r", *QUIET]
    for (after,) in run_sites(train_run, 2, 1, str(tmp_path / "two"), None, words):
        assert sorted(after["losses"]) == list(range(saved + 1, STEPS + 1))
    back = [*runs.common, f"checkpoint.resume={tmp_path}/two/r/site1", *QUIET, "train.steps=12"]
    (single,) = run_ranks(train_run, 1, str(tmp_path / "back"), None, back)
    assert sorted(single["losses"]) == [11, 12]
    assert "what local sync of 2 site(s) kept is dropped" in single["told"]
