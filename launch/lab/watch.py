"""Reads what the sites of a lab write about themselves, and shows it while they train."""

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from isthmus.launch.lab.network import Counts, SiteNetwork
from isthmus.units import format_count, format_duration

_SECONDS_BETWEEN_PLAIN_LINES = 5.0


class SiteLog:
    """The rows of one site's metrics.jsonl that this attempt has written so far."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "metrics.jsonl"
        # Rows of earlier attempts stay in the file.
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self.rows: list[dict[str, Any]] = []

    def read(self) -> None:
        """Take up the lines that are complete."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.rows += [json.loads(line) for line in whole.splitlines()]

    @property
    def trained(self) -> list[dict[str, Any]]:
        """Rows of steps, without the evaluation before the first."""
        return [row for row in self.rows if row["step_seconds"] is not None]


def say(console: Console, line: str) -> None:
    """Print one line as it is: a path may hold brackets, and lines in a file are not broken."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class Board:
    """A live table in a terminal; elsewhere a line every few seconds."""

    def __init__(self, console: Console, network: SiteNetwork, names: Sequence[str], logs: Sequence[SiteLog]) -> None:
        self._console, self._network, self._names, self._logs = console, network, names, logs
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._printed = time.monotonic()
        self._before = (time.monotonic(), network.counts())
        self._rates: dict[tuple[int, int], float] = {}

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, total_steps: int) -> None:
        """Read what is new and show it."""
        for log in self._logs:
            log.read()
        self._measure()
        if self._live:
            self._live.update(self._table(total_steps))
        elif time.monotonic() - self._printed > _SECONDS_BETWEEN_PLAIN_LINES:
            self._printed = time.monotonic()
            say(self._console, self._line(total_steps))

    def _measure(self) -> None:
        now, counts = time.monotonic(), self._network.counts()
        before, old = self._before
        if counts != old:
            self._rates = {pair: _mbps(counts, old, pair, now - before) for pair in counts}
            self._before = now, counts
        elif now - before > 2.0:
            self._rates = {}

    def _sent(self, site: int) -> float:
        return sum(rate for (source, _), rate in self._rates.items() if source == site)

    def _table(self, total_steps: int) -> Table:
        table = Table("site", "step", "loss", "tokens/s, all", "s a step", "waiting", "Mbit/s out", "left")
        for site, (name, log) in enumerate(zip(self._names, self._logs, strict=True)):
            rows = log.trained
            if not rows:
                table.add_row(name, "starting", "", "", "", "", f"{self._sent(site):.1f}", "")
                continue
            row, recent = rows[-1], rows[-10:]
            seconds = sum(entry["step_seconds"] for entry in recent) / len(recent)
            table.add_row(
                name,
                f"{row['step']}/{total_steps}",
                f"{row['loss']:.4f}",
                format_count(row["tokens_per_second"]),
                f"{seconds:.3f}",
                f"{_waiting_lately(rows):.0%}",
                f"{self._sent(site):.1f}",
                format_duration(seconds * (total_steps - row["step"])),
            )
        return table

    def _line(self, total_steps: int) -> str:
        parts = []
        for site, (name, log) in enumerate(zip(self._names, self._logs, strict=True)):
            rows = log.trained
            state = f"step {rows[-1]['step']}/{total_steps} loss {rows[-1]['loss']:.4f}" if rows else "starting"
            waiting = f", waiting {_waiting_lately(rows):.0%}" if rows else ""
            link = f", {self._sent(site):.1f} Mbit/s out" if self._before[1] else ""
            parts.append(f"{name}: {state}{waiting}{link}")
        return "   ".join(parts)


def steps_between(rows: Sequence[dict[str, Any]]) -> list[int]:
    """Return how many steps each row stands for; the first one's is taken to be as the second's."""
    gaps = [later["step"] - earlier["step"] for earlier, later in itertools.pairwise(rows)]
    return [*(gaps[:1] or [rows[0]["step"]] if rows else []), *gaps]


def waiting_share(rows: Sequence[dict[str, Any]], steps: Sequence[int]) -> float:
    """Return the share of the time that training waited for other sites, of rows that stand for so many steps each."""
    elapsed = sum(row["step_seconds"] * count for row, count in zip(rows, steps, strict=True))
    return sum(row.get("wan_exposed_seconds", 0.0) for row in rows) / elapsed if elapsed else 0.0


def _waiting_lately(rows: Sequence[dict[str, Any]]) -> float:
    # One more, since a row's steps begin at the one before it.
    return waiting_share(rows[-10:], steps_between(rows[-11:])[-10:])


def _mbps(now: Counts, before: Counts, pair: tuple[int, int], seconds: float) -> float:
    return (now[pair]["wire_bytes"] - before.get(pair, {}).get("wire_bytes", 0)) * 8 / 1e6 / seconds
