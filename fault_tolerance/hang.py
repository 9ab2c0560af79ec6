"""What the ranks of a site say when one of them hangs, and what follows from it: who is it that the others wait for?"""

import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from isthmus.files import write_json

_BLOCK = "(most recent call first):"  # as faulthandler begins the stack of each thread, the main thread's last
_FRAME = re.compile(r'^  File "([^"]+)", line (\d+) in (.+)$', re.MULTILINE)
# Python frames in which a rank waits for other ranks or sites.
_WAITING = (
    "/torch/distributed/",
    "/megatron/core/distributed/",
    "/megatron/core/pipeline_parallel/p2p_communication",
    "/megatron/core/tensor_parallel/mappings",
    "/parallelism/gradients.py",
    "/parallelism/optimizer.py",
    "/parallelism/sites/",
)
_INNERMOST = 4


@dataclass(frozen=True, kw_only=True)
class Note:
    """Where a rank was when the alarm was raised.

    Attributes:
        count: of phases that it had entered.
        expired: whether its own deadline had passed (or it met a timeout): it is one that raised the alarm.
        waiting: whether its main thread was waiting for other ranks, as far as its stack tells.
        at: innermost place of its main thread.
        time: seconds since 1970.
    """

    rank: int
    count: int
    step: int
    phase: str
    seconds: float
    expired: bool
    waiting: bool
    at: str
    time: float


class Notes:
    """The notes of one site, in a folder that all its ranks see.

    Args:
        since: older ones are of an earlier attempt.
        lifetime_seconds: after which an alarm is over.
    """

    def __init__(self, folder: Path, since: float, lifetime_seconds: float = float("inf")) -> None:
        self.folder, self._since, self._lifetime = folder, since, lifetime_seconds

    def write(self, note: Note) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"rank-{note.rank:05d}.json", asdict(note))
        if note.expired:
            write_json(self.folder / f"alarm-{note.rank:05d}.json", {"time": note.time})

    def speaker(self) -> int | None:
        """Return the lowest rank that has raised the alarm, which speaks for all; None: nobody has."""
        return min(self._alarms(), default=None)

    def gather(self, size: int, patience_seconds: float) -> list[Note]:
        """Return the notes of all ranks, or of those that have written one in time."""
        give_up = time.monotonic() + patience_seconds
        raised = min(self._alarms().values(), default=self._since)
        # Of an alarm before there may be notes already: better than none, but not what is waited for.
        while sum(note.time >= raised for note in self._read()) < size and time.monotonic() < give_up:
            time.sleep(min(0.2, patience_seconds / 10))
        return self._read()

    def _alarms(self) -> dict[int, float]:
        """Return when which ranks have raised an alarm that is not over."""
        found = {}
        for path in self.folder.glob("alarm-*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                raised = float(json.loads(path.read_text())["time"])
                if raised >= self._since and time.time() - raised < self._lifetime:
                    found[int(path.stem.removeprefix("alarm-"))] = raised
        return found

    def _read(self) -> list[Note]:
        found = []
        for path in sorted(self.folder.glob("rank-*.json")):
            with suppress(OSError, ValueError, TypeError):
                note = Note(**json.loads(path.read_text()))
                if note.time >= self._since:
                    found.append(note)
        return found

    def clear(self) -> None:
        """Remove what an earlier attempt has left."""
        for path in self.folder.glob("*.json"):
            path.unlink(missing_ok=True)


def main_thread(dump: str) -> tuple[str, bool]:
    """Return the innermost place of the main thread in faulthandler's dump, and whether it waits for others there."""
    frames = _FRAME.findall(dump.rpartition(_BLOCK)[2])
    if not frames:
        return "", False
    path, line, function = frames[0]
    waiting = any(place in file for file, _, _ in frames[:_INNERMOST] for place in _WAITING)
    return f"{Path(path).name}:{line} in {function}", waiting


def diagnose(notes: Sequence[Note], size: int) -> tuple[list[int], str]:
    """Return the ranks that the others wait for, and a line that names them and says why.

    These are: ranks that gave no sign; or those that have entered the fewest phases; of these, those whose stack is not
    one of waiting. Nobody in particular, where all wait for one another.
    """
    silent = sorted(set(range(size)) - {note.rank for note in notes})
    if silent and notes:
        first = min(notes, key=lambda note: note.count)
        line = f"{_ranks(silent)} gave no sign (frozen or gone) while the others are in {_place(first)}"
        return silent, line
    if not notes:
        return [], "no rank has said where it is"
    behind = [note for note in notes if note.count == min(other.count for other in notes)]
    working = [note for note in behind if not note.waiting]
    guilty = working or behind
    if len(guilty) == size > 1:
        return [], f"all {size} ranks are in {_place(guilty[0])}" + (", waiting for one another" if not working else "")
    at = f" (at {guilty[0].at})" if guilty[0].at else ""
    verb = "hangs" if len(guilty) == 1 else "hang"
    line = f"{_ranks([note.rank for note in guilty])} {verb} in {_place(guilty[0])}{at}"
    others = [note for note in notes if note not in guilty]
    if others:
        line += f"; {_ranks([note.rank for note in others])} in {_place(others[0])}"
    return [note.rank for note in guilty], line


def _place(note: Note) -> str:
    step = f" of step {note.step}" if note.step else ""
    return f"phase {note.phase}{step} since {note.seconds:.0f} s"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
