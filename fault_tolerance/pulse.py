"""Where a rank is, in memory that it shares with the process that watches it: no lock, no system call, no waiting."""

import mmap
import os
import struct
import time
from dataclasses import dataclass

_LAYOUT = struct.Struct("<QQQddd24s")  # version, phases entered, step, begun, deadline, suspicion, phase


@dataclass(frozen=True)
class Pulse:
    """The phase that a rank is in.

    Attributes:
        count: of phases entered so far; all ranks pass the same ones, so who has the least is who the others wait for.
        begun: on the clock that all processes of a machine share (CLOCK_MONOTONIC).
        deadline: seconds that it may take.
        suspicion: seconds after which it is looked into.
    """

    count: int
    step: int
    phase: str
    begun: float
    deadline: float
    suspicion: float = float("inf")


class PulseMemory:
    """Written by the rank, read by its watcher; a descriptor is all that the watcher needs."""

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = os.memfd_create("isthmus-pulse") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, _LAYOUT.size)
        self._memory = mmap.mmap(self.descriptor, _LAYOUT.size)
        self._version = 0

    def write(self, pulse: Pulse) -> None:
        values = (pulse.count, pulse.step, pulse.begun, pulse.deadline, pulse.suspicion, pulse.phase.encode()[:24])
        # An odd version says that the rest is being changed.
        _LAYOUT.pack_into(self._memory, 0, self._version + 1, *values)
        self._version += 2
        self._memory[:8] = self._version.to_bytes(8, "little")

    def read(self) -> Pulse:
        while True:
            version, count, step, begun, deadline, suspicion, phase = _LAYOUT.unpack_from(self._memory, 0)
            if version % 2 == 0 and int.from_bytes(self._memory[:8], "little") == version:
                return Pulse(count, step, phase.rstrip(b"\0").decode(), begun, deadline, suspicion)
            time.sleep(0.001)

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)
