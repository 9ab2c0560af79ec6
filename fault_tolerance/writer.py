"""The process that writes a rank's checkpoints: `python -m isthmus.fault_tolerance.writer DESCRIPTOR`.

It shares the memory of the snapshot, reads a request a line and answers with a line; it needs no torch. It ends with
the rank that started it: a save that was under way is then unfinished, and found to be so.
"""

import errno
import json
import mmap
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isthmus.fault_tolerance.chaos_files import SaveFaults
from isthmus.fault_tolerance.commit import commit, retire, write_part
from isthmus.fault_tolerance.filesystem import FileSystem
from isthmus.fault_tolerance.manifest import Manifest
from isthmus.fault_tolerance.store import Store, expendable
from isthmus.processes import serve_parent

_NICENESS = 5


class WriteError(Exception):
    """A checkpoint could not be written."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One rank's part of one save; rank 0 has the manifest and commits."""

    folder: str
    rank: int
    length: int
    deadline_seconds: float
    manifest: dict[str, Any] | None
    keep: int
    keep_every: int
    durable_everywhere: int
    process: int = 0  # of the rank
    faults: list[dict[str, Any]] = field(default_factory=list)  # to rehearse


def file_system_for(request: Request) -> FileSystem:
    """Return the disk as this save meets it, faults to rehearse included."""
    if not request.faults:
        return FileSystem()
    return FileSystem(SaveFaults(request.faults, Path(request.folder), request.rank, request.process))


def serve(request: Request, content: memoryview, fs: FileSystem) -> None:
    """Write this rank's part; as rank 0, commit and retire what has become expendable.

    Raises:
        WriteError: says what is wrong with the disk, or which rank is missing.
    """
    folder = Path(request.folder)
    try:
        write_part(fs, folder, request.rank, content)
        if request.manifest is None:
            return
        manifest = Manifest(**request.manifest)
        commit(fs, folder, manifest, deadline_seconds=request.deadline_seconds, alive=lambda: True)
        store = Store(folder.parent, fs)
        going = expendable(
            store.scan(),
            keep=request.keep,
            keep_every=request.keep_every,
            durable_everywhere=request.durable_everywhere,
        )
        retire(fs, [*store.leftovers(), *going])
    except TimeoutError as error:
        raise WriteError(str(error)) from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or str(error)
        raise WriteError(f"{folder}: {reason}") from None


class WriterProcess:
    """Hands requests to a process of its own; one is under way at a time."""

    def __init__(self, descriptor: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "isthmus.fault_tolerance.writer", str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
        )
        self._busy = False
        assert self._process.stdin
        assert self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout

    @property
    def busy(self) -> bool:
        return self._busy

    def start(self, request: Request) -> None:
        assert not self._busy
        self._busy = True
        try:
            self._requests.write(json.dumps(asdict(request)).encode() + b"\n")
            self._requests.flush()
        except OSError:
            raise WriteError("the process that writes checkpoints has died") from None

    def finished(self, *, wait: bool) -> bool:
        """Return whether the request that was under way has just been completed.

        Raises:
            WriteError: it failed, or the process has died.
        """
        if not self._busy:
            return False
        os.set_blocking(self._answers.fileno(), wait)
        line = self._answers.readline()
        if not line:
            if self._process.poll() is None and not wait:
                return False
            raise WriteError("the process that writes checkpoints has died")
        self._busy = False
        if error := json.loads(line)["error"]:
            raise WriteError(error)
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        with suppress(OSError):  # what was still to be written to a process that is gone
            self._requests.close()
        self._answers.close()


def main() -> None:
    serve_parent()
    descriptor = int(sys.argv[1])
    os.nice(_NICENESS)
    for line in sys.stdin.buffer:
        request = Request(**json.loads(line))
        error = ""
        try:
            with mmap.mmap(descriptor, request.length, access=mmap.ACCESS_READ) as memory, memoryview(memory) as view:
                serve(request, view, file_system_for(request))
        except WriteError as problem:
            error = str(problem)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        sys.stdout.write(json.dumps({"error": error}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
