"""The CPU backstop: the kernel ends a process that works on one page for too long, and the page's hash stays behind.

A Python signal handler would wait for the C library that is the very thing that hangs, so the signal keeps its default
action. CPU time is counted, not time on the clock: a busy machine changes nothing.
"""

import mmap
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HASH_BYTES = 16


class Guard:
    """Remembers in a file which page is being worked on.

    Args:
        path: a file of this process alone, read by its parent after its death.
        cpu_seconds: CPU time that one page may take.
    """

    def __init__(self, path: Path, cpu_seconds: float) -> None:
        path.write_bytes(bytes(HASH_BYTES))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), HASH_BYTES)
        self._cpu_seconds = cpu_seconds
        signal.signal(signal.SIGPROF, signal.SIG_DFL)

    @contextmanager
    def watch(self, page: bytes) -> Iterator[None]:
        """Work on a page: the process dies with SIGPROF if that takes too long."""
        self._page[:] = page
        signal.setitimer(signal.ITIMER_PROF, self._cpu_seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._page[:] = bytes(HASH_BYTES)


def page_at_death(path: Path) -> bytes | None:
    """Return the page that a dead process was working on, or None."""
    try:
        page = path.read_bytes()
    except OSError:
        return None
    return page if len(page) == HASH_BYTES and any(page) else None
