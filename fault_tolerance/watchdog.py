"""The rank's side of the watchdog: says which phase it is in, and leaves when its watcher tells it to."""

import faulthandler
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from isthmus.errors import EXIT_HANG, UserError
from isthmus.fault_tolerance.config import WatchdogConfig
from isthmus.fault_tolerance.deadlines import Deadlines
from isthmus.fault_tolerance.hang import Note, Notes, diagnose
from isthmus.fault_tolerance.pulse import Pulse, PulseMemory
from isthmus.fault_tolerance.watcher import DUMP_SIGNAL, HANGS, LEAVE, SUSPICIONS, Options, write_outcome
from isthmus.processes import attempt_id

START = "start"  # until training begins


class Hung(UserError):
    """A rank of this site makes no progress."""

    exit_code = EXIT_HANG


class NoWatchdog:
    """Watches nothing."""

    def enter(self, phase: str, step: int) -> None:
        pass

    def explain(self, error: BaseException) -> None:
        pass

    def close(self) -> None:
        pass


class Watchdog(NoWatchdog):
    """Ends this rank where a phase takes longer than its deadline.

    Args:
        folder: of the run, of this site; all its ranks see it.
        log: the rank's log file, which gets its stacks.
        floors: deadlines of phases that may never be shorter.
        suspicion_seconds: in a phase, before all ranks are asked where they are; shorter than a collective's timeout.
    """

    def __init__(
        self,
        config: WatchdogConfig,
        *,
        floor_seconds: float,
        floors: Mapping[str, float],
        suspicion_seconds: float,
        rank: int,
        size: int,
        folder: Path,
        log: IO[str],
    ) -> None:
        self._deadlines = Deadlines(
            first=config.first_seconds,
            floor=floor_seconds,
            factor=config.factor,
            floors=floors,
            suspicion=suspicion_seconds,
        )
        self._pulse = PulseMemory()
        self._count, self._phase, self._begun = 0, START, time.monotonic()
        self._options = Options(
            rank=rank,
            size=size,
            folder=str(folder),
            log=log.name,
            descriptor=self._pulse.descriptor,
            grace_seconds=config.grace_seconds,
            least_deadline=min(floor_seconds, config.first_seconds, suspicion_seconds),
            since=time.time(),
            attempt_id=attempt_id(),
        )
        self._notes = Notes(folder / "logs" / HANGS, self._options.since)
        if rank == 0:
            self._notes.clear()
            Notes(folder / "logs" / SUSPICIONS, 0.0).clear()
        # Written by a handler that needs no lock of Python's.
        faulthandler.register(DUMP_SIGNAL, file=log, all_threads=True)
        self._write(0)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "isthmus.fault_tolerance.watcher", json.dumps(asdict(self._options))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(self._pulse.descriptor,),
        )
        self._watched = True
        threading.Thread(target=self._listen, name="watchdog", daemon=True).start()

    def enter(self, phase: str, step: int) -> None:
        """A phase begins, and the one before has ended."""
        now = time.monotonic()
        if self._phase != START:
            self._deadlines.observe(self._phase, now - self._begun)
        self._count, self._phase, self._begun = self._count + 1, phase, now
        self._write(step)

    def explain(self, error: BaseException) -> None:
        """Find out which rank an error that speaks of a timeout is about: the other ranks are asked where they are.

        Raises:
            Hung: names it.
        """
        if not isinstance(error, RuntimeError) or "timed out" not in str(error).lower():
            return
        self._watched = False
        self._process.kill()  # from here on this thread speaks for the rank
        pulse = self._pulse.read()
        note = Note(
            rank=self._options.rank,
            count=pulse.count,
            step=pulse.step,
            phase=pulse.phase,
            seconds=time.monotonic() - pulse.begun,
            expired=True,
            waiting=True,
            at=f"a timeout: {str(error).splitlines()[0][:80]}",
            time=time.time(),
        )
        notes: list[Note] = []
        with suppress(OSError):
            self._notes.write(note)
            # Their watchers look for an alarm once they have been in a phase for a while.
            notes = self._notes.gather(self._options.size, self._options.grace_seconds)
        guilty, line = diagnose(notes, self._options.size)
        if guilty and guilty != [self._options.rank]:
            write_outcome(self._options, guilty, line)
            raise Hung(line, fix=f"stacks are in {self._notes.folder.parent}/rank-*.log") from error

    def close(self) -> None:
        self._watched = False
        self._process.kill()
        self._process.wait()
        faulthandler.unregister(DUMP_SIGNAL)
        self._pulse.close()

    def _write(self, step: int) -> None:
        deadline = self._deadlines.of(self._phase)
        # Starting takes as long as it takes.
        suspicion = deadline if self._phase == START else self._deadlines.suspicion(self._phase)
        self._pulse.write(Pulse(self._count, step, self._phase, self._begun, deadline, suspicion))

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            if lines.readline() == LEAVE:
                os._exit(EXIT_HANG)
        if self._watched:
            logging.warning("the process that watches this rank has died: a hang will not be noticed")
