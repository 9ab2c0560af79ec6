"""The sandbox as others use it: a handful of slots, each of which runs one program after another."""

import os
import queue
import threading
from collections.abc import Sequence
from types import TracebackType

from isthmus.data.synthetic.sandbox.job import Job, Outcome
from isthmus.data.synthetic.sandbox.languages import find
from isthmus.data.synthetic.sandbox.probe import probe
from isthmus.data.synthetic.sandbox.slot import SandboxFailed, Slot
from isthmus.data.synthetic.sandbox.syscalls import supported
from isthmus.errors import UserError

_ATTEMPTS = 3


class Sandbox:
    """Runs untrusted programs; used as a context, and from any number of threads.

    Args:
        languages: what programs may be written in.
        slots: how many run at once; one per core if None.

    Raises:
        UserError: an interpreter is missing, or this machine cannot hold the walls (each is tried at start).
    """

    def __init__(self, languages: Sequence[str] = ("python",), slots: int | None = None) -> None:
        if not supported():
            raise UserError("needs Linux on x86-64 or aarch64", where="sandbox", fix="run it on such a machine")
        # Python runs the probe, whatever else is wanted.
        self._interpreters = [find(name) for name in dict.fromkeys(("python", *languages))]
        self._count = slots or len(os.sched_getaffinity(0))
        self._idle: queue.LifoQueue[Slot] = queue.LifoQueue()
        self._slots: list[Slot] = []
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> "Sandbox":
        try:
            first = self._open()
            probe(first)
            self._idle.put(first)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(self, job: Job) -> Outcome:
        """Run a program when a slot is free; blocks until it has ended.

        Raises:
            SandboxFailed: the sandbox broke down under it several times.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            slot = self._take()
            try:
                outcome = slot.run(job)
            except SandboxFailed:
                self._discard(slot)
                if attempt == _ATTEMPTS or self._closed:
                    raise
            except BaseException:
                self._discard(slot)
                raise
            else:
                self._idle.put(slot)
                return outcome
        raise AssertionError("unreachable")

    def close(self) -> None:
        """End all programs that run."""
        self._closed = True
        with self._lock:
            slots, self._slots = self._slots, []
        for slot in slots:
            slot.close()

    def _take(self) -> Slot:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        with self._lock:
            if self._closed:
                raise SandboxFailed("the sandbox is closed")
            if len(self._slots) < self._count:
                return self._open_locked()
        return self._idle.get()

    def _discard(self, slot: Slot) -> None:
        slot.close()
        with self._lock:
            if slot in self._slots:
                self._slots.remove(slot)

    def _open(self) -> Slot:
        with self._lock:
            return self._open_locked()

    def _open_locked(self) -> Slot:
        slot = Slot(self._interpreters)
        self._slots.append(slot)
        return slot
