"""`isthmus train` and `python -m isthmus.train`: from the command line to a finished run and an exit code."""

import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from isthmus.config import compose, load_resolved, to_yaml
from isthmus.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, EXIT_REQUEUE, EXIT_SITE_LOST, EXIT_USER_ERROR, UserError
from isthmus.files import write_json
from isthmus.parallelism.sites.lane import LaneError
from isthmus.processes import attempt_id, die_with_launcher
from isthmus.train.command import Command, parse, print_help
from isthmus.train.config import Config
from isthmus.train.validate import Plan, plan_run

_SHARE_FOR_THE_SAVE = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says; return the exit code (see isthmus.errors)."""
    die_with_launcher()
    rank = int(os.environ.get("RANK", 0))
    plan = None
    try:
        command = parse(sys.argv[1:] if argv is None else argv)
        if command.help:
            print_help()
            return EXIT_OK
        if command.config and command.overrides:
            raise UserError("takes no overrides", where="--config", fix="the file is complete: change it there")
        if command.config:
            config = load_resolved(Config, command.config)
        else:
            config = compose(Config, "train", command.overrides)
        if command.print_config:
            print(to_yaml(config), end="")
            return EXIT_OK
        plan = plan_run(
            config,
            world_size=int(os.environ.get("WORLD_SIZE", 1)),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        )
        return _train(config, plan, command)
    except UserError as error:
        if rank:
            # Mostly all ranks meet the same error, and rank 0 says it; torchrun ends all when the first leaves.
            logging.error("rank %d: %s", rank, error)
            time.sleep(5)
        status = "refused" if error.exit_code == EXIT_USER_ERROR else "failed"
        _finish(plan, rank, status, error.exit_code, error=str(error))
        print(f"isthmus: {f'rank {rank}: ' if rank else ''}{error}", file=sys.stderr, flush=True)
        return error.exit_code
    except LaneError as error:
        _finish(plan, rank, "failed", EXIT_SITE_LOST, error=str(error))
        logging.error("another site was lost: %s", error)
        print(f"isthmus: {error}; all sites end, start them again", file=sys.stderr, flush=True)
        return EXIT_SITE_LOST
    except KeyboardInterrupt:
        if rank == 0:
            print("isthmus: interrupted before the first step was finished", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        _finish(plan, rank, "failed", EXIT_BUG, error=f"{type(error).__name__}: {error}")
        logging.exception("the run failed")
        traceback.print_exc()
        return EXIT_BUG


def _train(config: Config, plan: Plan, command: Command) -> int:
    # Megatron warns at import, once a module, that it has no transformer-engine: `train.precision` has dealt with that.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    from rich.console import Console

    from isthmus.fault_tolerance.ledger import describe, read_rows, summarize
    from isthmus.train.assembly import World, build_run
    from isthmus.train.loop import train
    from isthmus.train.rewinding import Rewound
    from isthmus.train.stop import StopRequest

    world = World.from_environment()
    console = Console(stderr=command.json, soft_wrap=True)
    stop = StopRequest(_stop_after(config.checkpoint.time_limit_seconds))
    with stop.listening(), build_run(config, plan, world, console, stop) as run:
        try:
            completed = train(run)
        except Rewound as error:
            run.ledger.close("rewound")
            _finish(plan, world.rank, "rewound", error.exit_code, step=run.progress.step, reason=str(error))
            if world.rank == 0:
                print(f"isthmus: {error}", file=sys.stderr, flush=True)
            return error.exit_code
        except LaneError as error:
            # Before this rank leaves its site's groups: what the other ranks then meet is a consequence.
            _finish(plan, world.rank, "failed", EXIT_SITE_LOST, error=str(error))
            raise
        by_hand = run.engine.any_rank(stop.by_hand)
        slowest = run.observer.slowest_rank()
        metrics = getattr(run.observer, "metrics", None)
        summary: dict[str, Any] = metrics.last if metrics else {}
        if completed:
            status, code = "completed", EXIT_OK
        else:
            status, code = ("interrupted", EXIT_INTERRUPTED) if by_hand else ("preempted", EXIT_REQUEUE)
        run.ledger.close(status)
        totals = summarize(read_rows(plan.folder / "ledger.jsonl")) if world.rank == 0 else {}
        if metrics:
            metrics.conclude(run.progress.step, totals)
    _finish(plan, world.rank, status, code, step=run.progress.step, tokens=run.progress.tokens)
    if world.rank == 0:
        summary = summary | {"goodput": totals["goodput"], "seconds": totals}
        for line in (describe(totals), slowest):
            if line:
                console.print(line, highlight=False)
        step = f"step {run.progress.step} of {plan.steps}"
        console.print(f"{status} at {step}; everything is in {plan.folder}", highlight=False)
        console.print(f"look at it with: tensorboard --logdir {plan.folder / 'tensorboard'}", highlight=False)
        if command.json:
            print(json.dumps({"status": status, "folder": str(plan.folder), **summary}))
    return code


def _stop_after(limit_seconds: float | None) -> float | None:
    """Leave a twentieth of a time limit, and a minute at most, for the step in progress and the save."""
    if limit_seconds is None:
        return None
    return limit_seconds - min(60.0, _SHARE_FOR_THE_SAVE * limit_seconds)


def _finish(plan: Plan | None, rank: int, status: str, code: int, **details: Any) -> None:
    """Write outcome.json: torchrun makes every failure of a worker exit code 1, and whoever started us wants ours.

    It begins as "running". A run that was refused leaves another's outcome alone; and since one rank's failure makes
    the others fail too, only the first is kept: it is the cause.
    """
    if plan is None or (rank and status not in ("failed", "refused")):
        return
    path = plan.folder / "outcome.json"
    with suppress(OSError, ValueError):
        before = json.loads(path.read_text())
        ours = before.get("attempt_id") == attempt_id() if rank else before.get("process") == os.getpid()
        # That a site was lost explains what looks like a bug of ours on the ranks that did not see it.
        undecided = before["status"] == "running" or (code == EXIT_SITE_LOST and before["exit_code"] == EXIT_BUG)
        if (status == "refused" and not ours) or (status == "failed" and not undecided):
            return
    with suppress(OSError):
        write_json(path, {"status": status, "exit_code": code, "rank": rank, **details})
