"""Resume is exact: a run that was broken off and started again equals the one that was not."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import assemble
from support.ranks import RankWorld, run_ranks, run_sites

from isthmus.config import compose
from isthmus.train.config import Config

COMMON = [
    "train.global_batch=8",
    "train.sequence_length=32",
    "train.micro_batch=1",
    "optim.learning_rate=3e-3",
    "parallel.bucket_parameters=100000",
    "log.tensorboard=false",
    "train.steps=10",
    "checkpoint.keep=10",
]
QUIET = ["checkpoint.every_steps=0"]
SAVING = ["checkpoint.every_steps=4", "checkpoint.asynchronous=false"]  # what is killed has no save under way


def _train(world: RankWorld, root: str, stop_at: int | None, words: list[str]) -> dict[str, Any]:
    """Rank function: a whole run through `build_run`; ended after `stop_at` as by a kill, without a last save."""
    import os

    from rich.console import Console

    from isthmus.parallelism import groups as groups_module
    from isthmus.train import assembly
    from isthmus.train.assembly import World, build_run
    from isthmus.train.loop import train
    from isthmus.train.stop import StopRequest
    from isthmus.train.validate import plan_run

    os.environ["MASTER_ADDR"] = "unused"
    original = groups_module.site_groups

    def with_store(*args: Any, **named: Any) -> Any:
        return original(*args, **named, init_method=world.init_method)

    assembly.site_groups = with_store  # type: ignore[assignment]
    overrides = [*COMMON, f"run.dir={root}", "run.name=r", *words]
    if world.sites > 1:
        from support.sites import site_overrides

        overrides += site_overrides(world)
    config = compose(Config, "train", overrides)
    plan = plan_run(config, world.size)
    told = io.StringIO()
    console = Console(file=told, width=1000)
    with build_run(config, plan, World(world.rank, world.size), console, StopRequest()) as run:
        seen: dict[str, Any] = {"losses": {}, "samples": {}}
        draw = run.loader.next_step

        def next_step() -> Any:
            batches = draw()
            seen["samples"][run.progress.step + 1] = [int(batch.tokens_BS.sum()) for batch in batches]
            return batches

        run.loader.next_step = next_step  # type: ignore[method-assign]
        step = run.observer.step

        def observe(report: Any, held_out: Any) -> None:
            seen["losses"][report.step] = (report.loss, report.grad_norm)
            step(report, held_out)
            if report.step == stop_at:
                raise _Killed

        run.observer.step = observe  # type: ignore[method-assign]
        try:
            completed = train(run)
        except _Killed:
            return seen
        assert completed
        seen["told"] = told.getvalue()
        seen["state"] = {}
        for kind, where, tensor in run.engine.state():
            seen["state"].setdefault(kind, []).append((where, tensor.numpy().copy()))
        seen["sync"] = [(kind, where, tensor.numpy().copy()) for kind, where, tensor in run.sync.slices()]
    return seen


class _Killed(Exception):
    pass


def _equal_states(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left["state"].keys() == right["state"].keys() == {"parameter", "exp_avg", "exp_avg_sq"}
    for kind in left["state"]:
        for (where, ours), (_, theirs) in zip(left["state"][kind], right["state"][kind], strict=True):
            assert np.array_equal(ours, theirs), f"{kind} of {where.name} differs"
    for (kind, where, ours), (_, _, theirs) in zip(left["sync"], right["sync"], strict=True):
        assert np.array_equal(ours, theirs), f"{kind} of {where.name} differs"


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
    quiet = run_ranks(_train, ranks, str(tmp_path / "quiet"), None, [*words, *QUIET])
    broken = run_ranks(_train, ranks, str(tmp_path / "runs"), 6, [*words, *SAVING])
    resumed = run_ranks(_train, ranks, str(tmp_path / "runs"), None, [*words, "checkpoint.every_steps=4"])
    for one, before, after in zip(quiet, broken, resumed, strict=True):
        assert sorted(after["losses"]) == [5, 6, 7, 8, 9, 10]
        assert {**before["losses"], **after["losses"]} == one["losses"]
        assert {**before["samples"], **after["samples"]} == one["samples"]
        _equal_states(one, after)


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
    quiet = run_sites(_train, 2, 1, str(tmp_path / "quiet"), None, [*words, *QUIET])
    # With H 4, P 2 and tau 3, a fragment sent at step 4 is under way at step 5.
    run_sites(
        _train, 2, 1, str(tmp_path / "runs"), 7, [*words, "checkpoint.every_steps=5", "checkpoint.asynchronous=false"]
    )
    resumed = run_sites(_train, 2, 1, str(tmp_path / "runs"), None, [*words, "checkpoint.every_steps=5"])
    for (one,), (after,) in zip(quiet, resumed, strict=True):
        assert sorted(after["losses"]) == [6, 7, 8, 9, 10]
        assert after["losses"] == {step: one["losses"][step] for step in after["losses"]}
        assert after["samples"] == {step: one["samples"][step] for step in after["samples"]}
        _equal_states(one, after)


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
    (quiet,) = run_ranks(_train, 1, str(tmp_path / "quiet"), None, [cache, "checkpoint.every_steps=0"])
    run_ranks(
        _train,
        before,
        str(tmp_path / "runs"),
        6,
        [cache, *here, *SAVING],
    )
    resumed = run_ranks(_train, after, str(tmp_path / "runs"), None, [cache, *there, "checkpoint.every_steps=4"])
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
    run_sites(_train, 2, 1, str(tmp_path / "runs"), 6, [*words, *SAVING, "checkpoint.every_steps=5"])
    changed = [*words, *SAVING, "sync.fragments=1", "sync.wire=bf16", "checkpoint.every_steps=0"]
    for (after,) in run_sites(_train, 2, 1, str(tmp_path / "runs"), None, changed):
        assert sorted(after["losses"]) == [6, 7, 8, 9, 10]
        # Sent at step 4 and due at 7: it was dropped, and said so.
        assert "not exact: sync.fragments has changed, sync.wire has changed" in after["told"]
        assert "the rounds under way are dropped" in after["told"]


def test_one_sites_checkpoint_starts_two(tmp_path: Path, shared_cache: Path) -> None:
    cache = f"data.cache_dir={shared_cache}"
    run_ranks(_train, 1, str(tmp_path / "one"), 6, [cache, *SAVING])
    words = [*SITES["local in mid-round"], cache, f"checkpoint.resume={tmp_path}/one/r", "checkpoint.every_steps=0"]
    for (after,) in run_sites(_train, 2, 1, str(tmp_path / "two"), None, words):
        assert sorted(after["losses"]) == [5, 6, 7, 8, 9, 10]
    back = [cache, f"checkpoint.resume={tmp_path}/two/r/site1", "checkpoint.every_steps=0", "train.steps=12"]
    (single,) = run_ranks(_train, 1, str(tmp_path / "back"), None, back)
    assert sorted(single["losses"]) == [11, 12]
    assert "what local sync of 2 site(s) kept is dropped" in single["told"]
