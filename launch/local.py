"""`isthmus launch`: several ranks on this machine, checked once before any of them starts."""

import sys
from collections.abc import Sequence

from isthmus.config import compose, load_resolved, to_yaml
from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.supervise import Supervisor
from isthmus.launch.verbs import run_verb
from isthmus.train.command import parse, print_help
from isthmus.train.config import Config
from isthmus.train.validate import load_corpus, plan_run, prepare_folder

_PROCESSES = "launch.processes"


def main(argv: Sequence[str]) -> int:
    """Compose and validate, hand every rank the resolved configuration, and return the run's own exit code."""
    if argv and argv[0] == "preflight":
        return run_verb("launch.preflight.command", argv[1:])
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
    return Supervisor(config, plan.folder, processes, ["--json"] if command.json else []).run()


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
