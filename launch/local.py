"""`isthmus launch`: several ranks on this machine, checked once before any of them starts."""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from isthmus.config import compose, load_resolved, to_yaml
from isthmus.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, EXIT_SITE_LOST, UserError
from isthmus.files import write_atomically
from isthmus.processes import DIE_WITH_PARENT
from isthmus.train.command import parse, print_help
from isthmus.train.config import Config
from isthmus.train.validate import load_corpus, plan_run, prepare_folder

_PROCESSES = "launch.processes"


def main(argv: Sequence[str]) -> int:
    """Compose and validate, hand every rank the resolved configuration, and return the run's own exit code."""
    try:
        command = parse(argv)
        if command.help:
            print(f"isthmus launch {_PROCESSES}=N [overrides of train]\n")
            print_help()
            return EXIT_OK
        processes, overrides = _take_processes(command.overrides)
        if command.config and overrides:
            raise UserError("takes no overrides", where="--config", fix="the file is complete: change it there")
        config = load_resolved(Config, command.config) if command.config else compose(Config, "train", overrides)
        if command.print_config:
            print(to_yaml(config), end="")
            return EXIT_OK
        plan = plan_run(config, world_size=processes)
        load_corpus(config, plan)
        prepare_folder(plan.folder)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    resolved = plan.folder / "config.yaml"
    write_atomically(resolved, to_yaml(config).encode())
    options = ["--json"] if command.json else []
    return _run_ranks(processes, ["-m", "isthmus.train", "--config", str(resolved), *options], plan.folder)


def _take_processes(overrides: Sequence[str]) -> tuple[int, list[str]]:
    rest = [override for override in overrides if not override.startswith("launch.")]
    asked = [override for override in overrides if override.startswith("launch.")]
    unknown = [override for override in asked if not override.startswith(f"{_PROCESSES}=")]
    if unknown:
        raise UserError(f"there is no key '{unknown[0]}'", where="override", fix=f"did you mean '{_PROCESSES}'?")
    value = asked[-1].partition("=")[2] if asked else "1"
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"is {value!r}", where=_PROCESSES, fix="give the number of ranks, from 1")
    return int(value), rest


def _exit_code_of(folder: Path, first: int) -> int:
    """Return what the outcome says: the first rank to leave may only have felt what another one knows."""
    try:
        outcome = json.loads((folder / "outcome.json").read_text())
    except (OSError, ValueError):
        return first
    lost = first == EXIT_BUG and outcome.get("exit_code") == EXIT_SITE_LOST
    return EXIT_SITE_LOST if lost else first


def _run_ranks(processes: int, arguments: list[str], folder: Path) -> int:
    """Run torchrun's agent in this process, so that its failure report does not bury the run's own message."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    os.environ[DIE_WITH_PARENT] = "1"
    # The agent's own scratch files, which it would leave behind.
    with tempfile.TemporaryDirectory(prefix="isthmus-launch-") as scratch:
        agent = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=folder.parent.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",  # the machine's own name may lead nowhere
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )
        try:
            elastic_launch(agent, sys.executable)(*arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode > 0:
                return _exit_code_of(folder, failure.exitcode)  # the rank has written why
            # Ended by a signal, it could not say anything itself.
            print(f"isthmus: rank {rank} ended by {failure.signal_name()}; see {folder}/logs", file=sys.stderr)
            return EXIT_BUG
        except (SignalException, KeyboardInterrupt):
            return EXIT_INTERRUPTED
    return EXIT_OK
