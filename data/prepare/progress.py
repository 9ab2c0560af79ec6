"""Progress for people: a line for each source and stage on a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from isthmus.units import format_bytes, format_count, format_duration

_PLAIN_SECONDS = 30.0
_COUNTS = ("documents", "amount", "kept", "dropped", "rejected", "tokens")


class Shown(Protocol):
    """One stage: `advance` while tasks run, `finish` as each ends, with its summary if it has one."""

    def advance(self, task: Any, items: int, amount: int) -> None: ...
    def finish(self, task: Any, size: int, summary: dict[str, Any] | None) -> None: ...


class Progress:
    """Shows stages on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, message: str) -> None:
        self._console.print(message, highlight=False)

    @contextmanager
    def stage(self, name: str, totals: dict[str, int]) -> Iterator["StageProgress"]:
        """Show a stage with so much work for each source: bytes to collect, documents to tokenize, else tasks."""
        columns = (
            TextColumn("{task.description}"),  # stage and source
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._console, disable=not self._console.is_terminal) as bars:
            stage = StageProgress(name, totals, bars, self._console)
            yield stage
        stage.conclude()


class StageProgress:
    """Counts of one stage by source."""

    def __init__(self, name: str, totals: dict[str, int], bars: RichProgress, console: Console) -> None:
        self._name, self._totals = name, totals
        self._bars, self._console = bars, console
        self._rows = {
            source: bars.add_task(f"{name} {source}", total=total, counts="") for source, total in totals.items()
        }
        self._counts = {source: dict.fromkeys(_COUNTS, 0) for source in totals}
        self._running: dict[int, tuple[str, int]] = {}  # work reported by tasks that are not finished
        self._finished = dict.fromkeys(totals, 0)
        self._begun = self._printed = time.monotonic()

    def advance(self, task: Any, items: int, amount: int) -> None:
        source = source_of(task)
        counts = self._counts[source]
        counts["documents"] += items
        counts["amount"] += amount
        work = amount if self._name == "collect" else items if self._name == "tokenize" else 0
        self._running[id(task)] = (source, self._running.get(id(task), (source, 0))[1] + work)
        self._show(source)

    def finish(self, task: Any, size: int, summary: dict[str, Any] | None) -> None:
        source = source_of(task)
        self._finished[source] += size
        self._running.pop(id(task), None)
        if summary:
            statistics = summary["statistics"]
            counts = self._counts[source]
            counts["kept"] += statistics["kept"]
            counts["dropped"] += sum(documents for documents, _ in statistics["dropped"].values())
            counts["rejected"] += statistics["rejected"]
            counts["tokens"] += statistics["tokens"]
        self._show(source)

    def conclude(self) -> None:
        elapsed = time.monotonic() - self._begun
        for source, counts in sorted(self._counts.items()):
            self._console.print(
                f"{self._name} {source}: {self._describe(counts, elapsed)}".rstrip(": "), highlight=False
            )

    def _show(self, source: str) -> None:
        elapsed = max(1e-9, time.monotonic() - self._begun)
        running = sum(work for owner, work in self._running.values() if owner == source)
        done = min(self._totals[source], self._finished[source] + running)
        self._bars.update(self._rows[source], completed=done, counts=self._describe(self._counts[source], elapsed))
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            total = sum(self._totals.values())
            done = min(total, sum(self._finished.values()) + sum(work for _, work in self._running.values()))
            left = format_duration(elapsed * (total - done) / done) if done else "?"
            counts = {name: sum(part[name] for part in self._counts.values()) for name in _COUNTS}
            self._console.print(
                f"{self._name} {done / max(1, total):.0%}: {self._describe(counts, elapsed)}, {left} left",
                highlight=False,
            )

    def _describe(self, counts: dict[str, int], elapsed: float) -> str:
        parts = []
        if self._name in ("collect", "tokenize") and counts["documents"]:
            parts.append(f"{format_count(counts['documents'])} documents")
        if counts["amount"]:
            amount = counts["amount"]
            rate = amount / max(elapsed, 1e-9)
            if self._name == "tokenize":
                parts.append(f"{format_count(amount)} tokens, {format_count(rate)}/s")
            else:
                parts.append(f"{format_bytes(amount)}, {format_bytes(rate)}/s")
        for name in ("kept", "dropped", "rejected"):
            if counts[name]:
                parts.append(f"{format_count(counts[name])} {name}")
        return ", ".join(parts) or f"{format_duration(elapsed)}"


def source_of(task: Any) -> str:
    """Return the source that a task belongs to."""
    found = getattr(task, "unit", None) or getattr(task, "plan", None)
    return str(getattr(found, "source", "all sources"))
