"""How the sites of a launch stand, wherever they are: what their folders and Slurm say."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.launch.record import SiteRecord
from isthmus.launch.shell import Unreachable
from isthmus.launch.site_state import site_state
from isthmus.launch.start import in_parallel

# squeue(1), JOB STATE CODES, of jobs that will do no more.
_OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
_OVER |= {"REVOKED", "TIMEOUT"}


def states(sites: Sequence[SiteRecord]) -> list[dict[str, Any]]:
    """Return the state of each site; `unreachable` says why one could not be asked."""
    return in_parallel(_state, sites)


def active(state: dict[str, Any]) -> bool:
    """Return whether a site is running or will run again by itself."""
    if state.get("job_state") is not None:
        return state["job_state"] not in _OVER
    return bool(state.get("alive"))


def describe(state: dict[str, Any]) -> str:
    """Return the state of a site in a word or two."""
    if "unreachable" in state:
        return "unreachable"
    if not state["started"]:
        return "to be started by hand" if state["supervisor"] is None else str(state["status"])
    if state.get("job_state") is not None:
        job = f"job {state['job']} {state['job_state'].lower()}"
        return f"{job} ({state['reason']})" if state.get("reason") not in (None, "None", "") else job
    if state["alive"] is False and state["status"] == "running":
        return "gone"
    if state["alive"] and state["supervisor"] == "restarting":
        return "restarting"
    return str(state["status"] or ("starting" if state["alive"] else "not started"))


def _state(site: SiteRecord) -> dict[str, Any]:
    fixed = {"site": site.name, "kind": site.kind, "folder": site.folder, "started": site.started}
    shell = site.shells()[0]
    try:
        if not shell.host:
            found = site_state(Path(site.folder))
        else:
            command = f"{shlex.quote(site.python)} -m isthmus.launch.site_state {shlex.quote(site.folder)}"
            answer = shell.run(f"{site.prelude}\n{command}")
            if answer.code:
                return fixed | {"unreachable": answer.last_words}
            found = json.loads(answer.out.splitlines()[-1])
        if site.job is not None:
            # A job without a broken node has taken the first one's place.
            found["job"] = found["job"] or site.job
            found |= _job_state(site, found["job"])
        return fixed | found
    except Unreachable as error:
        return fixed | {"unreachable": str(error)}


def _job_state(site: SiteRecord, job: str) -> dict[str, Any]:
    answer = site.shells()[0].run(f"squeue --noheader --jobs={shlex.quote(job)} --states=all --format='%T|%r'")
    # Slurm forgets a job some minutes after its end.
    if answer.code and "invalid job id" not in answer.err.lower():
        raise Unreachable(answer.last_words)
    state, _, reason = answer.out.strip().partition("|") if answer.code == 0 else ("", "", "")
    return {"job_state": state or "COMPLETED", "reason": reason if state == "PENDING" else None}
