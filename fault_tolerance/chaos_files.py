"""Faults within a save, where the files are written: in a process of its own, that knows neither torch nor Hydra."""

import errno
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from isthmus.fault_tolerance.filesystem import Hook
from isthmus.fault_tolerance.records import parse_folder_name, rank_file
from isthmus.files import write_json

LEADER_POINTS = ("manifest_written", "committed", "retiring")
SAVE_POINTS = ("part_written", "part_durable", *LEADER_POINTS)


@dataclass(frozen=True)
class Marker:
    """Says in the run folder how often a fault struck: it must not strike again after the restart that it causes."""

    path: Path

    def take(self, times: int) -> bool:
        """Return whether it may strike now (0 times: always), and remember that it does, before it does."""
        if self.spent(times):
            return False
        write_json(self.path, {"struck": self._struck() + 1})
        return True

    def spent(self, times: int) -> bool:
        """Return whether it has struck often enough."""
        return times > 0 and self._struck() >= times

    def _struck(self) -> int:
        with suppress(OSError, ValueError, KeyError):
            return int(json.loads(self.path.read_text())["struck"])
        return 0


class SaveFaults(Hook):
    """Strikes within a save.

    Args:
        faults: as `Chaos.of_saves` returns them.
        folder: of the checkpoint.
        rank: whose part is written.
        process: of the rank, which may be another one than this.
    """

    def __init__(self, faults: Sequence[dict[str, Any]], folder: Path, rank: int, process: int) -> None:
        numbers = parse_folder_name(folder.name)
        step = numbers[0] if numbers else 0
        self._faults = [fault for fault in faults if fault["step"] is None or step >= fault["step"]]
        self._folder, self._rank, self._process = folder, rank, process
        self._full = False

    def before(self, operation: str, path: Path, data: Buffer | None = None, target: Path | None = None) -> None:
        if operation != "write":
            return
        self._full = self._full or any(self._strikes(fault) for fault in self._of("fill_disk"))
        if self._full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def reach(self, point: str) -> None:
        for fault in self._of("stall"):
            if fault["point"] == point.replace(" ", "_") and self._strikes(fault):
                time.sleep(fault["seconds"])
        for fault in self._of("kill"):
            if fault["point"] == point.replace(" ", "_") and self._strikes(fault):
                os.kill(self._process, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
        if point == "part durable":
            for fault in self._of("flip_bit"):
                if self._strikes(fault):
                    _flip_bit(self._folder / rank_file(self._rank))

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [fault for fault in self._faults if fault["kind"] == kind]

    def _strikes(self, fault: dict[str, Any]) -> bool:
        return Marker(Path(fault["marker"])).take(fault["times"])


def _flip_bit(path: Path) -> None:
    """Change one bit in the middle of a file, as a disk might."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 16]))
