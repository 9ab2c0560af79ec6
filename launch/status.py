"""`isthmus launch status RUN`: each site's job, how far it is, and whether it is alive."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.record import chosen_sites, read_record
from isthmus.launch.states import describe, states
from isthmus.launch.words import Words
from isthmus.units import format_count, format_duration

_USAGE = """\
isthmus launch status RUN [SITE ...] [--json]   how each site stands

RUN is a run folder (runs/NAME). Sites elsewhere are asked over ssh, jobs through squeue.
"""
_LONG = 60
_WIDTH_OF_FILES = 160


def main(argv: Sequence[str]) -> int:
    try:
        words = Words(argv, verb="launch status", flags=["--json"])
        if words.help or not words.rest:
            print(_USAGE, end="")
            return EXIT_OK if words.help else UserError.exit_code
        run_folder = Path(words.rest[0]).expanduser()
        record = read_record(run_folder)
        found = states(chosen_sites(record, words.rest[1:]))
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    if words.flag("--json"):
        print(json.dumps({"run": record.run, "sites": found}))
    else:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH_OF_FILES)
        console.print(_table(found))
    return EXIT_OK


def _table(found: list[dict[str, Any]]) -> Table:
    table = Table("site", "state", "step", "loss", "tokens/s", "last heartbeat", "attempts", "goodput", "last error")
    for state in found:
        if "unreachable" in state:
            table.add_row(state["site"], describe(state), "", "", "", "", "", "", state["unreachable"][:_LONG])
            continue
        beat = state["heartbeat_seconds"]
        table.add_row(
            state["site"],
            describe(state),
            _shown(state["step"]),
            _shown(state["loss"], "{:.4f}"),
            "" if state["tokens_per_second"] is None else format_count(state["tokens_per_second"]),
            "" if beat is None else f"{format_duration(beat)} ago, {state['ranks']} rank(s)",
            _shown(state["attempts"]),
            _shown(state["goodput"], "{:.1%}"),
            (state["error"] or "")[:_LONG],
        )
    return table


def _shown(value: Any, form: str = "{}") -> str:
    return "" if value is None else form.format(value)
