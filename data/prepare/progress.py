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
    def stage(self, name: str, tasks: int, total: int) -> Iterator["StageProgress"]:
        """Show a stage of so many tasks and so much work (bytes to collect, documents to tokenize, else tasks)."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._console, disable=not self._console.is_terminal) as bars:
            stage = StageProgress(name, total, bars, self._console)
            yield stage
        if tasks:
            stage.conclude()


class StageProgress:
    """Counts of one stage by source."""

    def __init__(self, name: str, total: int, bars: RichProgress, console: Console) -> None:
        self._name, self._total = name, total
        self._bars, self._console = bars, console
        self._rows: dict[str, Any] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._running: dict[int, int] = {}  # work reported by a task that is not finished
        self._begun = self._printed = time.monotonic()
        self._finished = 0
        self._all = bars.add_task(f"{name}", total=total, counts="")

    def advance(self, task: Any, items: int, amount: int) -> None:
        counts = self._of(task)
        counts["documents"] += items
        counts["amount"] += amount
        work = amount if self._name == "collect" else items if self._name == "tokenize" else 0
        self._running[id(task)] = self._running.get(id(task), 0) + work
        self._show(task)

    def finish(self, task: Any, size: int, summary: dict[str, Any] | None) -> None:
        self._finished += size
        self._running.pop(id(task), None)
        if summary:
            statistics = summary["statistics"]
            counts = self._of(task)
            counts["kept"] += statistics["kept"]
            counts["dropped"] += sum(documents for documents, _ in statistics["dropped"].values())
            counts["rejected"] += statistics["rejected"]
            counts["tokens"] += statistics["tokens"]
        self._show(task)

    def conclude(self) -> None:
        elapsed = time.monotonic() - self._begun
        for source, counts in sorted(self._counts.items()):
            self._console.print(
                f"{self._name} {source}: {self._describe(counts, elapsed)}".rstrip(": "), highlight=False
            )

    def _show(self, task: Any) -> None:
        source = _source(task)
        elapsed = max(1e-9, time.monotonic() - self._begun)
        done = min(self._total, self._finished + sum(self._running.values()))
        self._bars.update(self._all, completed=done, counts=self._describe(self._sum(), elapsed))
        if source not in self._rows:
            self._rows[source] = self._bars.add_task(f"  {source}", total=None, counts="")
        self._bars.update(self._rows[source], counts=self._describe(self._of(task), elapsed))
        now = time.monotonic()
        if not self._console.is_terminal and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            left = format_duration(elapsed * (self._total - done) / done) if done else "?"
            share = f"{done / self._total:.0%}" if self._total else ""
            self._console.print(
                f"{self._name} {share}: {self._describe(self._sum(), elapsed)}, {left} left", highlight=False
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

    def _of(self, task: Any) -> dict[str, int]:
        names = ("documents", "amount", "kept", "dropped", "rejected", "tokens")
        return self._counts.setdefault(_source(task), dict.fromkeys(names, 0))

    def _sum(self) -> dict[str, int]:
        total: dict[str, int] = dict.fromkeys(("documents", "amount", "kept", "dropped", "rejected", "tokens"), 0)
        for counts in self._counts.values():
            for name, value in counts.items():
                total[name] += value
        return total


def _source(task: Any) -> str:
    found = getattr(task, "unit", None) or getattr(task, "plan", None)
    return str(getattr(found, "source", "all sources"))
