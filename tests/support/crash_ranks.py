"""Two ranks that save, one of which is killed: forked from a process without torch, whose threads a fork would break.

Reads requests from standard input, a line of JSON each, and answers with one.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from isthmus.fault_tolerance.commit import commit, retire, write_part
from isthmus.fault_tolerance.filesystem import FileSystem, Hook
from isthmus.fault_tolerance.manifest import Manifest
from isthmus.fault_tolerance.records import rank_file, vote_file
from isthmus.fault_tolerance.store import Store, expendable

RANKS = 2
OLD_STEP, NEW_STEP = 10, 20  # the first is acknowledged, the save of the second is broken off, and retires the first
ATTEMPT = 2


def manifest_of(step: int, attempt: int, ranks: int = 2, **fields: Any) -> Manifest:
    values: dict[str, Any] = {
        "tokens": 100 * step,
        "round": 0,
        "layout": {"tensor": 1, "pipeline": 1, "data": ranks},
        "sync": "none",
        "site": "main",
        "sites": [],
        "config": {"model.num_layers": 4},
        "saved_at": 1.0,
    }
    return Manifest(step=step, attempt=attempt, ranks=ranks, **(values | fields))


class Killer(Hook):
    """Ends the process by SIGKILL before, in the middle of (writes only) or after its nth operation."""

    def __init__(self, number: int, when: str) -> None:
        self._number, self._when, self._count = number, when, 0

    def before(self, operation: str, path: Path, data: Buffer | None = None, target: Path | None = None) -> None:
        if self._count == self._number and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._count == self._number and self._when == "within" and data is not None:
            with path.open("ab") as file:
                file.write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    def after(self, operation: str, path: Path, data: Buffer | None = None, target: Path | None = None) -> None:
        if self._count == self._number and self._when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        self._count += 1


def write(root: Path, contents: Path, rank: int, fs: FileSystem) -> None:
    """What each rank does; rank 0 follows it with `conclude`."""
    content = (contents / rank_file(rank)).read_bytes()
    write_part(fs, Store(root / "checkpoints").path(NEW_STEP, ATTEMPT), rank, content)


def conclude(root: Path, fs: FileSystem, acknowledge: Callable[[], Any]) -> None:
    store = Store(root / "checkpoints", fs)
    folder = store.path(NEW_STEP, ATTEMPT)
    commit(fs, folder, manifest_of(NEW_STEP, ATTEMPT), deadline_seconds=30, alive=lambda: True)
    acknowledge()
    going = expendable(store.scan(), keep=1, keep_every=0, durable_everywhere=NEW_STEP)
    retire(fs, [*store.leftovers(), *going])


def kill_one(root: Path, contents: Path, victim: int, number: int, when: str) -> dict[str, Any]:
    """Save with two processes, one of which is killed; the other goes on as far as it can."""
    reading, writing = os.pipe()
    processes = []
    for rank in range(RANKS):
        process = os.fork()
        if not process:
            try:
                fs = FileSystem(Killer(number, when) if rank == victim else None)
                write(root, contents, rank, fs)
                if rank == 0:
                    conclude(root, fs, lambda: os.write(writing, b"a"))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        processes.append(process)
    os.close(writing)
    _, status = os.waitpid(processes[victim], 0)
    # Rank 0 would wait for a vote that never comes: the launcher ends it.
    if victim == 1 and not (Store(root / "checkpoints").path(NEW_STEP, ATTEMPT) / vote_file(1)).exists():
        os.kill(processes[0], signal.SIGKILL)
    os.waitpid(processes[1 - victim], 0)
    acknowledged = bool(os.read(reading, 1))
    os.close(reading)
    return {"killed": os.WIFSIGNALED(status), "acknowledged": acknowledged}


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        folders = [Path(request.pop(name)) for name in ("root", "contents")]
        print(json.dumps(kill_one(*folders, **request)), flush=True)
