"""A run under `isthmus launch`, watched and killed from outside; shared by checkpoint.py and soak.py."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


class Launched:
    """Starts `isthmus launch` with two ranks in a folder; the run is `runs/r/main`."""

    def __init__(self, root: Path, words: list[str]) -> None:
        self.folder = root / "runs" / "r" / "main"
        root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "isthmus.launch.cli", "launch", "launch.processes=2", "run.name=r", *words]
        self.began = time.time()
        self.errors: list[tuple[float, str]] = []  # (when, line) of standard error
        self._log = (root / "out.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=root, stdout=self._log, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append((time.time(), line.rstrip()))

    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self.folder / "ledger.jsonl")

    def last_step(self) -> int:
        return max((row["step"] for row in self.rows() if row["what"] == "step"), default=0)

    def wait_for_step(self, step: int, *, within_seconds: float = 600) -> None:
        deadline = time.monotonic() + within_seconds
        while self.last_step() < step:
            assert self.process.poll() is None, self.errors[-5:]
            assert time.monotonic() < deadline, f"no step {step} within {within_seconds} s"
            time.sleep(0.02)

    def ranks(self) -> list[int]:
        """Return the process numbers of the ranks that run now."""
        found: list[int] = []
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(word) for word in path.read_text().split()]
        return [pid for pid in sorted(found) if b"isthmus.train" in _command_line(pid)]

    def kill_one(self, choose: random.Random) -> float | None:
        """Kill -9 a rank; return when, or None where none runs."""
        ranks = self.ranks()
        if not ranks:
            return None
        now = time.time()
        with suppress(ProcessLookupError):
            os.kill(choose.choice(ranks), signal.SIGKILL)
            return now
        return None

    def finish(self, timeout: float) -> int:
        code = self.process.wait(timeout)
        self._reader.join(10)
        self._log.close()
        return code

    def stop(self) -> None:
        """End it and its ranks, which end with it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    with suppress(OSError):
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def _command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint's folder of a site."""
    whole = [path.parent for path in folder.glob("checkpoints/step-*/manifest.json")]
    return max(whole, key=lambda path: int(re.findall(r"\d+", path.name)[0]))
