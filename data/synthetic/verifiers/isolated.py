"""A function called in processes that are ended when it hangs: one process for each thread that waits.

Arguments and values are JSON, a line each way.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from typing import Any

from isthmus.processes import die_with_parent

_START_SECONDS = 120.0  # a fresh interpreter with the function's libraries, on a busy machine
_MEMORY_BYTES = 4 << 30


class Isolated:
    """Calls `MODULE:FUNCTION` elsewhere.

    Args:
        seconds: CPU time that one call may take; on the clock, ten times that.
    """

    def __init__(self, function: str, *, seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def call(self, *arguments: Any) -> Any:
        """Return the function's value, or None if it took too long or ended its process.

        Raises:
            RuntimeError: it raised, with its words.
        """
        process = self._take()
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(arguments).encode() + b"\n")
            process.stdin.flush()
            answer = _line(process, self._seconds * 10)
        except OSError:
            answer = b""
        if not answer:
            _end(process)
            return None
        with self._lock:
            self._idle.append(process)
        found = json.loads(answer)
        if "error" in found:
            raise RuntimeError(f"{self._function}: {found['error']}")
        return found["value"]

    def close(self) -> None:
        with self._lock:
            for process in self._idle:
                _end(process)
            self._idle.clear()

    def _take(self) -> "subprocess.Popen[bytes]":
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.poll() is None:  # it dies with the thread that started it
                    return process
                _end(process)
        words = [sys.executable, "-m", __name__, self._function, str(self._seconds)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if not _line(process, _START_SECONDS):
            _end(process)
            raise RuntimeError(f"{self._function} does not start")
        return process


def _line(process: "subprocess.Popen[bytes]", seconds: float) -> bytes:
    """Return the next line, or nothing if it does not come in time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline() if ready else b""


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def _serve(function: str, seconds: float) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    module, _, name = function.partition(":")
    target = getattr(importlib.import_module(module), name)
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF keeps its default action: the process ends
        try:
            answer = {"value": target(*json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], float(sys.argv[2]))
