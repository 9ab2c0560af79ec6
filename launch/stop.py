"""`isthmus launch stop RUN`: ask all ranks to save and end, and see that they do."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from isthmus.errors import EXIT_BUG, EXIT_OK, UserError
from isthmus.launch.record import SiteRecord, chosen_sites, read_record
from isthmus.launch.shell import Unreachable
from isthmus.launch.states import active, describe, states
from isthmus.launch.words import Words

_USAGE = """\
isthmus launch stop RUN [SITE ...] [--wait SECONDS]   save, then end

All sites of a run end after the same step. Jobs do not queue again; the same `isthmus launch` goes on later.
It waits until they have ended, 600 s unless told otherwise.
"""
_PAUSE_SECONDS = 1.0


def main(argv: Sequence[str]) -> int:
    """Return 0 when all sites have ended, 1 if one has not in time."""
    try:
        words = Words(argv, verb="launch stop", options=["--wait"])
        if words.help or not words.rest:
            print(_USAGE, end="")
            return EXIT_OK if words.help else UserError.exit_code
        wait_seconds = words.number("--wait", 600)
        record = read_record(Path(words.rest[0]).expanduser())
        sites = chosen_sites(record, words.rest[1:])
        for site in sites:
            _forbid_requeue(site, record.launch_id)
        for site, state in zip(sites, states(sites), strict=True):
            _stop(site, state)
        return _wait(sites, wait_seconds)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code


def _forbid_requeue(site: SiteRecord, launch_id: str) -> None:
    """In every site before any is stopped: they end together. A later launch, by hand, is not meant."""
    if site.job is not None:
        _run(site, f"echo {shlex.quote(launch_id)} >{shlex.quote(f'{site.folder}/launch/stop')}")


def _stop(site: SiteRecord, state: dict[str, Any]) -> None:
    if "unreachable" in state:
        raise UserError(state["unreachable"], where=site.name, fix="stop it there")
    if not active(state):
        print(f"{site.name}: {describe(state)}, nothing to stop")
        return
    if site.job is not None:
        job = shlex.quote(state["job"])
        # Without a step there is nothing to save.
        _run(site, f"scancel --signal=TERM {job}" if state["job_state"] == "RUNNING" else f"scancel {job}")
    elif site.processes:
        for shell, process in zip(site.shells(), site.processes, strict=True):
            with suppress(Unreachable):
                # Its number may have gone to another since.
                shell.run(f"grep -qsa isthmus /proc/{process}/cmdline && kill -TERM {process}")
    else:
        supervisor = _supervisor(site)
        with suppress(ProcessLookupError):
            os.kill(supervisor, signal.SIGTERM)
    print(f"{site.name}: asked to save and end")


def _supervisor(site: SiteRecord) -> int:
    return int(json.loads(Path(site.folder, "launch", "supervisor.json").read_text())["process"])


def _wait(sites: list[SiteRecord], seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        found = states(sites)
        left = [state for state in found if "unreachable" not in state and active(state)]
        if not left:
            for state in found:
                print(f"{state['site']}: {describe(state)} at step {state.get('step')}")
            return EXIT_OK
        if time.monotonic() > deadline:
            names = ", ".join(state["site"] for state in left)
            print(f"isthmus: {names}: still running after {seconds:.0f} s", file=sys.stderr)
            return EXIT_BUG
        time.sleep(_PAUSE_SECONDS)


def _run(site: SiteRecord, command: str) -> None:
    try:
        answer = site.shells()[0].run(command)
    except Unreachable as error:
        raise UserError(str(error), where=site.name, fix="stop it there") from None
    if answer.code:
        raise UserError(answer.last_words, where=site.name, fix="stop it there")
