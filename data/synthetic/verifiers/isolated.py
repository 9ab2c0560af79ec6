"""A function called in processes that are ended when it hangs: one process for each thread that waits."""

import importlib
import multiprocessing
import threading
from multiprocessing.connection import Connection
from typing import Any

from isthmus.processes import die_with_parent

_START_SECONDS = 120.0  # a fresh interpreter with the function's libraries, on a busy machine


class Isolated:
    """Calls `MODULE:FUNCTION` elsewhere.

    Args:
        seconds: CPU time that one call may take; on the clock, ten times that.
    """

    def __init__(self, function: str, *, seconds: float) -> None:
        self._function, self._seconds = function, seconds
        self._idle: list[tuple[Any, Connection]] = []
        self._lock = threading.Lock()

    def call(self, *arguments: Any) -> Any:
        """Return the function's value, or None if it took too long or ended its process.

        Raises:
            RuntimeError: it raised, with its words.
        """
        process, connection = self._take()
        try:
            connection.send(arguments)
            if not connection.poll(self._seconds * 10):
                raise EOFError
            fine, value = connection.recv()
        except (EOFError, OSError):
            process.kill()
            process.join()
            connection.close()
            return None
        with self._lock:
            self._idle.append((process, connection))
        if not fine:
            raise RuntimeError(f"{self._function}: {value}")
        return value

    def close(self) -> None:
        with self._lock:
            for process, connection in self._idle:
                connection.close()
                process.kill()
                process.join()
            self._idle.clear()

    def _take(self) -> tuple[Any, Connection]:
        with self._lock:
            while self._idle:
                process, connection = self._idle.pop()
                if process.is_alive():  # it dies with the thread that started it
                    return process, connection
                connection.close()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._function, self._seconds), daemon=True)
        process.start()
        theirs.close()
        if not ours.poll(_START_SECONDS):
            process.kill()
            raise RuntimeError(f"{self._function} did not start")
        ours.recv()
        return process, ours


def _serve(connection: Connection, function: str, seconds: float) -> None:
    import resource
    import signal

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    module, _, name = function.partition(":")
    target = getattr(importlib.import_module(module), name)
    connection.send("ready")
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF keeps its default action: the process ends
        try:
            answer = (True, target(*arguments))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(answer)
