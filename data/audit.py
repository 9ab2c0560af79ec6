"""The record of what was served: to find a batch's documents, and to prove that every sample was consumed once."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.data.phases import PhaseLog
from isthmus.data.shares import Division
from isthmus.errors import UserError

JOURNAL = "data.jsonl"
SAMPLE_LOGS = "samples"


class Journal:
    """Appends a row to `data.jsonl` where an attempt begins, and this rank's samples to `samples/rank-00000.jsonl`.

    Args:
        folder: of the run and site.
        writes_attempts: whether this rank keeps `data.jsonl` (one of a site does).
        log_samples: whether it keeps its samples.
    """

    def __init__(self, folder: Path, rank: int, *, writes_attempts: bool, log_samples: bool) -> None:
        # Counted when the rank starts: the row of this attempt is written when all ranks have met.
        self._attempt = len(_rows(folder / JOURNAL)) if (folder / JOURNAL).exists() else 0
        self._attempts = folder / JOURNAL if writes_attempts else None
        self._samples = folder / SAMPLE_LOGS / f"rank-{rank:05d}.jsonl" if log_samples else None

    def begin(
        self, sample: int, global_batch: int, division: Division, log: list[dict[str, Any]], skip: Sequence[range]
    ) -> None:
        if self._attempts:
            row = {
                "sample": sample,
                "global_batch": global_batch,
                "ranks": division.ranks,
                "shares": division.shares,
                "skip": [[skipped.start, skipped.stop] for skipped in skip],
                "mixtures": log,
            }
            _append(self._attempts, row)
        if self._samples:
            _append(self._samples, {"attempt": self._attempt, "from": sample})

    def consumed(self, samples: range) -> None:
        if self._samples:
            _append(self._samples, [samples.start, samples.stop])


@dataclass(frozen=True)
class Attempt:
    """What an attempt served from `sample` on, the first of them as step `step` + 1."""

    step: int
    sample: int
    global_batch: int
    division: Division
    log: PhaseLog

    def samples(self, step: int) -> range:
        """Return the samples of a step, counted from 1."""
        first = self.sample + (step - self.step - 1) * self.global_batch
        return range(first, first + self.global_batch)


def attempts(folder: Path) -> list[Attempt]:
    """Read a run's attempts; one that resumed before the end of another takes its place from there on.

    Raises:
        UserError: the run has no record of its data.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise UserError("has no record of its data", where=str(path), fix="give the folder of a site, RUN/SITE")
    found: list[Attempt] = []
    for row in _rows(path):
        found = [attempt for attempt in found if attempt.sample < row["sample"]]
        step = 0
        if found:
            step = found[-1].step + (row["sample"] - found[-1].sample) // found[-1].global_batch
        division = Division(row["ranks"], tuple(row["shares"]))
        found.append(Attempt(step, row["sample"], row["global_batch"], division, PhaseLog.load(row["mixtures"])))
    if not found:
        raise UserError("is empty", where=str(path), fix="the run has not begun its first step")
    return found


@dataclass(frozen=True)
class Audit:
    """Samples [0, end) and what is wrong with them; a rank's samples after the point it resumed from do not count."""

    end: int
    logs: int
    missing: tuple[range, ...]
    repeated: tuple[range, ...]

    @property
    def clean(self) -> bool:
        return not self.missing and not self.repeated


def audit(run: Path) -> Audit:
    """Compare the samples that all ranks of all sites consumed with the order.

    Raises:
        UserError: there are no sample logs.
    """
    logs = sorted(run.glob(f"{SAMPLE_LOGS}/rank-*.jsonl")) or sorted(run.glob(f"*/{SAMPLE_LOGS}/rank-*.jsonl"))
    if not logs:
        raise UserError("has no sample logs", where=str(run), fix="train with data.log_samples=true")
    parts: list[range] = []
    for folder in sorted({log.parent for log in logs}):
        parts += _counted([_rows(log) for log in logs if log.parent == folder])
    end = max((part.stop for part in parts), default=0)
    return Audit(end, len(logs), tuple(_gaps(parts, end)), tuple(_overlaps(parts)))


def _counted(histories: Sequence[list[Any]]) -> Iterator[range]:
    """Yield what the ranks of a site consumed and no later attempt took back by resuming before it."""
    begun = {row["attempt"]: row["from"] for rows in histories for row in rows if isinstance(row, dict)}
    for rows in histories:
        attempt = -1
        for row in rows:
            if isinstance(row, dict):
                attempt = row["attempt"]
            else:
                stop = min([row[1], *(sample for later, sample in begun.items() if later > attempt)])
                if row[0] < stop:
                    yield range(row[0], stop)


def _gaps(parts: Sequence[range], end: int) -> Iterator[range]:
    reached = 0
    for part in sorted(parts, key=lambda part: part.start):
        if part.start > reached:
            yield range(reached, part.start)
        reached = max(reached, part.stop)
    if reached < end:
        yield range(reached, end)


def _overlaps(parts: Sequence[range]) -> Iterator[range]:
    reached = 0
    for part in sorted(parts, key=lambda part: part.start):
        if part.start < reached:
            yield range(part.start, min(reached, part.stop))
        reached = max(reached, part.stop)


def _append(path: Path, row: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # a crash left half a line
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def _rows(path: Path) -> list[Any]:
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
