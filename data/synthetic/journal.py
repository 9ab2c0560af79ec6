"""The journal: every answer and verdict, on disk before anything is made of it, so that nothing is paid for twice.

One JSON object a line: `a` an answer, `b` the answers of a batch, `v` a verdict, `o` what became of an item. A line is
written by one call, so a killed process leaves whole lines and at most one torn end, which is cut off. A kill loses
nothing that was written; a machine that loses power may lose the last second.
"""

import json
import os
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.data.synthetic.protocols import Completion, Verdict, digest
from isthmus.errors import UserError

JOURNAL = "journal.jsonl"
_SYNC_SECONDS = 1.0
_ABSENT = -1


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that will never be answered, and why; with what was paid for answers of no use."""

    reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


Answer = Completion | Refused


@dataclass
class Spent:
    """What was paid for in all runs; `cost` in the unit of the generators' prices."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Journal:
    """Appends to a file, and knows what unfinished items have been answered so far; for any number of threads.

    Raises:
        UserError: the file is damaged elsewhere than at its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: dict[int, dict[str, Any]] = {}
        self._places = array("q")
        self._ids = array("Q")
        self._done = 0
        self._failed = False
        self.spent = Spent()
        self._end = self._load()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, self._end)
        self._synced = time.monotonic()

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def done(self, item: int, identity: str) -> bool:
        """Say whether the item of this number has its outcome.

        Raises:
            UserError: that outcome is another item's.
        """
        if item >= len(self._places) or self._places[item] == _ABSENT:
            return False
        if self._ids[item] != _short(identity):
            raise UserError(
                f"item {item} was another one when the work began",
                where="data.seeds",
                fix="restore the seeds or choose another out",
            )
        return True

    @property
    def outcomes(self) -> int:
        return self._done

    def known(self, item: int, key: str) -> Any:
        """Return the answer to a request or the verdict with this key, or None."""
        return self._open.get(item, {}).get(key)

    def answers(self, entries: Sequence[tuple[int, str, Answer, float]]) -> None:
        """Write the answers of one call as (item, key, answer, cost): all of them or, after a kill, none."""
        rows = [_row(*entry) for entry in entries]
        with self._lock:
            self._append(rows[0] if len(rows) == 1 else {"b": rows})
            for row in rows:
                self._take(row)

    def verdict(self, item: int, key: str, verdict: Verdict) -> None:
        row = {"v": key, "i": item, "ok": verdict.ok, "why": verdict.reason, "details": verdict.details}
        with self._lock:
            self._append(row)
            self._take(row)

    def outcome(self, item: int, outcome: dict[str, Any]) -> None:
        """Write what became of an item, and forget its answers."""
        with self._lock:
            place = self._append({"o": item, "is": outcome})
            self._finish(item, place, outcome["item"])

    def finished(self, below: int) -> Iterator[dict[str, Any]]:
        """Yield the outcomes of items with a lower number, in their order."""
        with self.path.open("rb") as file:
            for item in range(min(below, len(self._places))):
                if self._places[item] != _ABSENT:
                    file.seek(self._places[item])
                    outcome: dict[str, Any] = json.loads(file.readline())["is"]
                    yield outcome

    def _append(self, row: dict[str, Any]) -> int:
        line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"
        if self._failed:
            raise UserError("could not be written", where=str(self.path), fix="see to the disk and run it again")
        place, self._end = self._end, self._end + len(line)
        try:
            while line:
                line = line[os.write(self._file, line) :]
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except BaseException as error:
            # A part of a line must not stay where others could follow it.
            self._end, self._failed = place, True
            os.ftruncate(self._file, place)
            self._failed = isinstance(error, Exception)  # after an interrupt, what is under way is still written down
            raise
        return place

    def _load(self) -> int:
        """Read the file; return where its last whole line ends."""
        place = 0
        if not self.path.exists():
            return place
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line.decode("utf-8", "surrogatepass"))
                    if "o" in row:
                        self._finish(row["o"], place, row["is"]["item"])
                    for part in row.get("b", [row]):
                        self._take(part)
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        "is damaged", where=f"{self.path}:{number}", fix="restore it, or choose another out"
                    ) from None
                place += len(line)
        return place

    def _take(self, row: dict[str, Any]) -> None:
        if "a" in row:
            answer: Answer
            if "no" in row:
                answer = Refused(row["no"], *row.get("n", (0, 0)))
            else:
                prompt_tokens, completion_tokens = row["n"]
                answer = Completion(row["t"], prompt_tokens, completion_tokens, row["f"])
            self._open.setdefault(row["i"], {})[row["a"]] = answer
            self.spent.requests += 1
            self.spent.prompt_tokens += answer.prompt_tokens
            self.spent.completion_tokens += answer.completion_tokens
            self.spent.cost += row["c"]
        elif "v" in row:
            self._open.setdefault(row["i"], {})[row["v"]] = Verdict(row["ok"], row["why"], row["details"])

    def _finish(self, item: int, place: int, identity: str) -> None:
        while len(self._places) <= item:
            self._places.append(_ABSENT)
            self._ids.append(0)
        self._ids[item] = _short(identity)
        self._done += self._places[item] == _ABSENT
        self._places[item] = place
        self._open.pop(item, None)


def calibration_journal(folder: Path, judged: str) -> Path:
    """Return the journal of a calibration: of certain judges on certain texts."""
    return folder / f"calibration-{judged}.jsonl"


def spent_in(folder: Path, opened: Journal) -> Spent:
    """Return what was spent in a folder that is held: by the synthesis and by every calibration."""
    total = Spent(**vars(opened.spent))
    for path in [folder / JOURNAL, *folder.glob("calibration*.jsonl")]:
        if path.exists() and path != opened.path:
            with closing(Journal(path)) as other:
                for name, value in vars(other.spent).items():
                    setattr(total, name, getattr(total, name) + value)
    return total


def _short(identity: str) -> int:
    return int(digest(identity), 16)


def _row(item: int, key: str, answer: Answer, cost: float) -> dict[str, Any]:
    tokens = [answer.prompt_tokens, answer.completion_tokens]
    if isinstance(answer, Refused):
        return {"a": key, "i": item, "no": answer.reason, **({"n": tokens} if any(tokens) else {}), "c": cost}
    return {"a": key, "i": item, "t": answer.text, "n": tokens, "f": answer.finish, "c": cost}
