"""`isthmus data audit`: whether a run consumed every sample exactly once."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from isthmus.data.audit import audit
from isthmus.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from isthmus.launch.words import Words

_USAGE = """\
isthmus data audit RUN [--json]

Prove from the sample logs of all ranks of all sites (data.log_samples=true) that every sample of the order was consumed
exactly once, or list those that were not; then the exit code is 2. What a crash undid and was served again counts once.
"""
_SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """Audit a run.

    Raises:
        UserError: there are no logs.
    """
    words = Words(argv, verb="data audit", flags=("--json",))
    if words.help:
        print(_USAGE, end="")
        return EXIT_OK
    if len(words.rest) != 1:
        raise UserError("give one folder", where="data audit", fix="isthmus data audit RUN")
    found = audit(Path(words.rest[0]).expanduser())
    console = Console(stderr=words.flag("--json"), soft_wrap=True)
    for title, ranges in (("missing", found.missing), ("repeated", found.repeated)):
        for part in ranges[:_SHOWN]:
            console.print(f"{title}: samples {part.start} to {part.stop - 1}", highlight=False)
        if len(ranges) > _SHOWN:
            console.print(f"{title}: {len(ranges) - _SHOWN} more ranges (--json lists them)", highlight=False)
    if found.clean:
        console.print(f"each of the samples 0 to {found.end - 1} was consumed once, by {found.logs} ranks' logs")
    if words.flag("--json"):
        listed = {
            name: [[part.start, part.stop] for part in ranges]
            for name, ranges in (("missing", found.missing), ("repeated", found.repeated))
        }
        print(json.dumps({"samples": found.end, "logs": found.logs, "clean": found.clean, **listed}))
    return EXIT_OK if found.clean else EXIT_USER_ERROR
