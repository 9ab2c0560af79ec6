"""How a site's run stands, from the files in its run folder: `python -m isthmus.launch.site_state FOLDER`."""

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from isthmus.fault_tolerance.heartbeat import read_heartbeats
from isthmus.fault_tolerance.ledger import read_rows, summarize

_TAIL_BYTES = 1 << 16


def site_state(folder: Path) -> dict[str, Any]:
    """Return what there is to say: null where a file is not there yet."""
    now = time.time()
    outcome, supervisor = _read(folder / "outcome.json"), _read(folder / "launch" / "supervisor.json")
    row = _last_row(folder / "metrics.jsonl")
    beats = [beat for beat in read_heartbeats(folder) if beat["doing"] != "ended"]
    ledger = read_rows(folder / "ledger.jsonl")
    return {
        "there": folder.is_dir(),
        "status": outcome.get("status"),
        "exit_code": outcome.get("exit_code"),
        "supervisor": supervisor.get("state"),
        "attempts": supervisor.get("attempts"),
        "excluded": supervisor.get("excluded", []),
        "alive": _alive(supervisor),
        "job": _line(folder / "launch" / "job"),
        "step": row.get("step"),
        "loss": row.get("loss"),
        "tokens_per_second": row.get("tokens_per_second"),
        "ranks": len(beats),
        # The one that has been silent for longest.
        "heartbeat_seconds": max((now - beat["time"] for beat in beats), default=None),
        "goodput": summarize(ledger)["goodput"] if ledger else None,
        "error": outcome.get("error") or next(iter(supervisor.get("said", [])[-1:]), None),
    }


def _alive(supervisor: dict[str, Any]) -> bool | None:
    """Return whether the supervisor's process is there; None where that cannot be seen from this machine."""
    if not supervisor or supervisor.get("state") == "ended":
        return False
    if supervisor.get("host") != socket.gethostname():
        return None
    with suppress(OSError):
        command = Path(f"/proc/{supervisor['process']}/cmdline").read_bytes()
        return b"isthmus" in command
    return False


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
    return {}


def _last_row(path: Path) -> dict[str, Any]:
    """Return the last whole row: of a long file, only the end is read."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        content = file.read()
        row = json.loads(content[: content.rfind(b"\n") + 1].splitlines()[-1])
        if isinstance(row, dict):
            return row
    return {}


def _line(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text().strip() or None
    return None


if __name__ == "__main__":
    print(json.dumps(site_state(Path(sys.argv[1]))))
