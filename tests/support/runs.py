"""Whole runs through `build_run`, broken off where a test wants it, and what can be seen of them."""

import io
from typing import Any

import numpy as np

from isthmus.config import compose
from isthmus.train.config import Config
from support.ranks import RankWorld

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


def train_run(world: RankWorld, root: str, stop_at: int | None, words: list[str]) -> dict[str, Any]:
    """Rank function: a whole run through `build_run`; ended after `stop_at` as by a kill, without a last save."""
    import os

    from rich.console import Console

    from isthmus.parallelism import groups as groups_module
    from isthmus.train import assembly
    from isthmus.train.assembly import World, build_run
    from isthmus.train.loop import train
    from isthmus.train.rewinding import Rewound
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
        except Rewound as error:
            run.ledger.close("rewound")
            return {**seen, "rewound": str(error), "step": run.progress.step}
        finally:
            seen["told"] = told.getvalue()
        assert completed
        seen["state"] = {}
        for kind, where, tensor in run.engine.state():
            seen["state"].setdefault(kind, []).append((where, tensor.numpy().copy()))
        seen["sync"] = [(kind, where, tensor.numpy().copy()) for kind, where, tensor in run.sync.slices()]
    return seen


class _Killed(Exception):
    pass


def assert_equal_states(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left["state"].keys() == right["state"].keys() == {"parameter", "exp_avg", "exp_avg_sq"}
    for kind in left["state"]:
        for (where, ours), (_, theirs) in zip(left["state"][kind], right["state"][kind], strict=True):
            assert np.array_equal(ours, theirs), f"{kind} of {where.name} differs"
    for (kind, where, ours), (_, _, theirs) in zip(left["sync"], right["sync"], strict=True):
        assert np.array_equal(ours, theirs), f"{kind} of {where.name} differs"
