"""The process that watches a rank: `python -m isthmus.fault_tolerance.watcher OPTIONS`.

A rank that hangs may do so inside a C call that keeps Python's lock, or be frozen altogether, so who notices must be
somebody else. This one needs no torch, and no answer from the rank: it reads the rank's pulse in shared memory, has its
stacks written by a signal whose handler needs no lock, and kills it where it does not leave by itself.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.errors import EXIT_HANG
from isthmus.fault_tolerance.hang import Note, Notes, diagnose, main_thread
from isthmus.fault_tolerance.pulse import Pulse, PulseMemory
from isthmus.files import write_json
from isthmus.processes import serve_parent

DUMP_SIGNAL = signal.SIGRTMIN + 7  # nobody else's: NCCL may take USR1, schedulers send USR2
LEAVE = b"leave\n"
HANGS, SUSPICIONS = "hang", "suspicion"  # in the folder of logs
_NICENESS = 5
_POLL_SECONDS = 1.0
_LOOK_SECONDS = 5.0  # in a phase, before a rank looks whether another has raised the alarm
_DUMP_SECONDS = 3.0
_LEAVE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a watcher is told by its rank."""

    rank: int
    size: int
    folder: str  # of the run, of this site
    log: str  # where the rank's stacks go
    descriptor: int
    grace_seconds: float
    least_deadline: float
    since: float
    attempt_id: str


class Watcher:
    """Watches its parent process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._logs = Path(options.folder) / "logs"
        self._notes = Notes(self._logs / HANGS, options.since)
        self._suspicions = Notes(self._logs / SUSPICIONS, options.since, 2 * options.grace_seconds)
        self._looked_into = -1  # number of the phase
        self._pulse = PulseMemory(options.descriptor)
        self._rank = os.getppid()
        self._poll = min(_POLL_SECONDS, options.least_deadline / 10)
        self._look = min(_LOOK_SECONDS, options.least_deadline / 4)

    def run(self) -> None:
        """Return when the rank has been ended; else with the rank itself."""
        frozen, phase = 0.0, -1
        while True:
            before = time.monotonic()
            time.sleep(self._poll)
            pulse = self._pulse.read()
            if pulse.count != phase:
                phase, frozen = pulse.count, 0.0
            # If this process was not run either, the machine was: that is not the rank's fault.
            frozen += max(time.monotonic() - before - 5 * self._poll, 0.0)
            age = time.monotonic() - pulse.begun - frozen
            if age > pulse.deadline:
                self._end(pulse, expired=True)
                return
            if age > self._look and self._notes.speaker() is not None:
                self._end(pulse, expired=False)
                return
            if age > self._look and self._looked_into != pulse.count and self._options.size > 1:
                suspects = age > pulse.suspicion
                if suspects or self._suspicions.speaker() is not None:
                    self._looked_into = pulse.count
                    self._look_into(pulse, suspects)

    def _look_into(self, pulse: Pulse, suspects: bool) -> None:
        """Have all ranks say where they are, and go on: a collective that times out may leave no time for it (NCCL)."""
        with suppress(OSError):
            why = "which is long for it" if suspects else "and another rank waits for long"
            note = describe(self._options, pulse, self._dump(pulse, why), expired=suspects)
            self._suspicions.write(note)
            if suspects and self._suspicions.speaker() == self._options.rank:
                notes = self._suspicions.gather(self._options.size, self._options.grace_seconds)
                _, line = diagnose(notes, self._options.size)
                self._tell(f"it seems that {line}")

    def _end(self, pulse: Pulse, *, expired: bool) -> None:
        with suppress(OSError):
            why = f"its deadline is {pulse.deadline:.0f} s" if expired else "another rank has raised the alarm"
            note = describe(self._options, pulse, self._dump(pulse, why), expired=expired)
            self._notes.write(note)
            if self._notes.speaker() == self._options.rank:
                self._speak()
            else:
                time.sleep(self._options.grace_seconds)
        with suppress(OSError):
            sys.stdout.buffer.write(LEAVE)
            sys.stdout.buffer.flush()
        time.sleep(_LEAVE_SECONDS)
        with suppress(ProcessLookupError):
            os.kill(self._rank, signal.SIGKILL)

    def _speak(self) -> None:
        notes = self._notes.gather(self._options.size, self._options.grace_seconds)
        guilty, line = diagnose(notes, self._options.size)
        self._tell(line)
        write_outcome(self._options, guilty, line)

    def _tell(self, line: str) -> None:
        print(f"isthmus: {line}; stacks are in {self._logs}/rank-*.log", file=sys.stderr, flush=True)

    def _dump(self, pulse: Pulse, why: str) -> str:
        """Have the rank write its stacks into its log; return what it wrote."""
        path = Path(self._options.log)
        age = time.monotonic() - pulse.begun
        with path.open("a") as log:
            log.write(f"watchdog: phase {pulse.phase} of step {pulse.step} since {age:.1f} s, {why}; all stacks:\n")
        start = path.stat().st_size
        os.kill(self._rank, DUMP_SIGNAL)
        give_up, size = time.monotonic() + _DUMP_SECONDS, start
        while time.monotonic() < give_up:
            time.sleep(0.1)
            grown = path.stat().st_size
            if grown == size > start:
                break
            size = grown
        with path.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")


def describe(options: Options, pulse: Pulse, dump: str, *, expired: bool) -> Note:
    """Return a rank's note from its pulse and its stacks."""
    at, waiting = main_thread(dump)
    return Note(
        rank=options.rank,
        count=pulse.count,
        step=pulse.step,
        phase=pulse.phase,
        seconds=time.monotonic() - pulse.begun,
        expired=expired,
        waiting=waiting,
        at=at,
        time=time.time(),
    )


def write_outcome(options: Options, guilty: list[int], line: str) -> None:
    """Write outcome.json for ranks that cannot do so themselves, unless one of this attempt has said why it failed."""
    path = Path(options.folder) / "outcome.json"
    before: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        before = json.loads(path.read_text())
    if before.get("status") == "running" and before.get("attempt_id") in (None, options.attempt_id):
        outcome = {"status": "failed", "exit_code": EXIT_HANG, "rank": guilty[0] if guilty else 0, "error": line}
        write_json(path, outcome)


def main() -> None:
    serve_parent()
    os.nice(_NICENESS)
    Watcher(Options(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
