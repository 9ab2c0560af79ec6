"""The sandbox as others use it: a handful of slots, each of which runs one program after another."""

import os
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
        languages: what programs may be written in, beside Python.
        slots: how many run at once; one per core if None.

    Raises:
        UserError: an interpreter is missing, or this machine cannot hold the walls (each is tried at start).
    """

    def __init__(self, languages: Sequence[str] = ("python",), slots: int | None = None) -> None:
        if not supported():
            raise UserError("needs Linux on x86-64 or aarch64", where="sandbox", fix="run it on such a machine")
        # Python runs the probe, whatever else is wanted.
        self._interpreters = [find(name) for name in dict.fromkeys(("python", *languages))]
        self._places = threading.BoundedSemaphore(slots or len(os.sched_getaffinity(0)))
        self._slots: list[Slot] = []
        self._idle: list[Slot] = []
        self._lock = threading.Lock()
        self._probed = self._closed = False

    def __enter__(self) -> "Sandbox":
        self.open()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def open(self) -> None:
        """Try the walls, unless that has been done; the first `run` does it too.

        Raises:
            UserError: one does not hold.
        """
        with self._lock:
            if self._probed or self._closed:
                return
            first = Slot(self._interpreters)
            try:
                probe(first)
            except BaseException:
                first.close()
                raise
            self._slots.append(first)
            self._idle.append(first)
            self._probed = True

    def run(self, job: Job) -> Outcome:
        """Run a program when a slot is free; blocks until it has ended.

        Raises:
            UserError: a wall does not hold here, or the sandbox broke down under the program several times.
            SandboxFailed: it was closed.
        """
        self.open()
        for attempt in range(1, _ATTEMPTS + 1):
            with self._places:
                slot = self._take()
                try:
                    outcome = slot.run(job)
                except SandboxFailed as error:
                    self._discard(slot)
                    if self._closed:
                        raise
                    if attempt == _ATTEMPTS:
                        raise UserError(
                            f"broke down {attempt} times under a program ({error})",
                            where="sandbox",
                            fix="the machine may be short of memory or processes; the same command goes on",
                        ) from None
                except BaseException:
                    self._discard(slot)
                    raise
                else:
                    with self._lock:
                        self._idle.append(slot)
                    return outcome
        raise AssertionError("unreachable")

    def processes(self) -> list[int]:
        """Return the numbers of the slots' first processes."""
        with self._lock:
            return [slot.process for slot in self._slots]

    def close(self) -> None:
        """End all programs that run."""
        with self._lock:
            self._closed = True
            slots, self._slots = self._slots, []
            self._idle.clear()
        for slot in slots:
            slot.close()

    def _take(self) -> Slot:
        with self._lock:
            if self._closed:
                raise SandboxFailed("the sandbox is closed")
            if self._idle:
                return self._idle.pop()
            slot = Slot(self._interpreters)
            self._slots.append(slot)
            return slot

    def _discard(self, slot: Slot) -> None:
        slot.close()
        with self._lock:
            if slot in self._slots:
                self._slots.remove(slot)
