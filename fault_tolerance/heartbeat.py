"""A sign of life from every rank, as a small file: who it is, how far it has come, when it was last seen.

A thread writes it, so it goes on through long steps; that a step does not end is for the watchdog to notice. A rank
whose heartbeat stops is frozen, or its machine is gone.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_EVERY_SECONDS = 5.0
LEAST_SILENCE_SECONDS = 3 * _EVERY_SECONDS  # less may be a slow disk


class Heartbeat:
    """Writes `heartbeats/rank-00000.json` of a run folder."""

    def __init__(self, folder: Path, rank: int, every_seconds: float = _EVERY_SECONDS) -> None:
        self._path, self._rank, self._every = _file(folder, rank), rank, every_seconds
        self._step, self._step_at, self._doing = -1, time.time(), "starting"
        self._over = threading.Event()

    def step(self, step: int) -> None:
        """A step has ended; -1: none yet, training begins."""
        self._step, self._step_at, self._doing = step, time.time(), "training"

    @contextmanager
    def beating(self) -> Iterator["Heartbeat"]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write()
        thread = threading.Thread(target=self._beat, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join()
            self._doing = "ended"
            self._write()

    def _beat(self) -> None:
        while not self._over.wait(self._every):
            self._write()

    def _write(self) -> None:
        """Replace the file; not synced, since after a power cut it says nothing anyway."""
        beat = {
            "rank": self._rank,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "doing": self._doing,
            "step": self._step,
            "step_at": self._step_at,
            "time": time.time(),
        }
        temporary = self._path.with_name(f".{self._path.name}")
        with suppress(OSError):  # a full disk is the checkpoint's to report
            temporary.write_text(json.dumps(beat) + "\n")
            os.replace(temporary, self._path)


def read_heartbeats(folder: Path) -> list[dict[str, Any]]:
    """Return the last heartbeat of every rank of a run folder, in order of rank."""
    found = []
    for path in sorted((folder / "heartbeats").glob("rank-*.json")):
        with suppress(OSError, ValueError):
            found.append(json.loads(path.read_text()))
    return found


def forget_heartbeats(folder: Path, size: int) -> None:
    """Remove those of an earlier attempt with more ranks."""
    for path in (folder / "heartbeats").glob("rank-*.json"):
        with suppress(OSError, ValueError):
            if int(path.stem.removeprefix("rank-")) >= size:
                path.unlink()


class HeartbeatMonitor:
    """Notices ranks of this attempt whose heartbeat has stopped, by this machine's clock alone."""

    def __init__(self, folder: Path, silence_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._silence, self._clock = folder, silence_seconds, clock
        self._old = {beat["rank"]: beat["time"] for beat in read_heartbeats(folder)}  # of attempts before
        self._seen: dict[int, tuple[float, float]] = {}
        self._look_at = 0.0

    def lost(self) -> str | None:
        """Return which rank has been silent for too long, if any has."""
        now = self._clock()
        if not self._silence or now < self._look_at:
            return None
        self._look_at = now + min(_EVERY_SECONDS, self._silence / 2)
        for beat in read_heartbeats(self._folder):
            rank, written = beat["rank"], beat["time"]
            if self._old.get(rank) == written or beat["doing"] == "ended":
                self._seen.pop(rank, None)
            elif self._seen.get(rank, (None, 0.0))[0] != written:
                self._seen[rank] = written, now
            elif now - self._seen[rank][1] > self._silence:
                return f"rank {rank} on {beat['host']} has given no sign of life for {self._silence:.0f} s"
        return None


def _file(folder: Path, rank: int) -> Path:
    return folder / "heartbeats" / f"rank-{rank:05d}.json"
