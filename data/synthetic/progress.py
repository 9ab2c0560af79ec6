"""Progress for people: acceptance by stage, tokens spent and kept, and when it will be done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from isthmus.data.synthetic.journal import Spent
from isthmus.data.synthetic.statistics import Statistics
from isthmus.units import format_count, format_duration

_PLAIN_SECONDS = 30.0
_DRAWN_SECONDS = 0.1


class SynthesisProgress:
    """A bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._total = self._before = 0
        self._begun = self._shown = 0.0
        self._bars: RichProgress | None = None

    @contextmanager
    def running(self, total: int, done: int) -> Iterator[None]:
        """Show the work on `total` items, of which `done` were finished in earlier runs."""
        self._total, self._before = total, done
        self._begun = self._shown = time.monotonic()
        if done:
            self.console.print(f"{done:,} of {total:,} items are in the journal already", highlight=False)
        columns = (TextColumn("items"), BarColumn(bar_width=20), TextColumn("{task.fields[counts]}"))
        with RichProgress(*columns, console=self.console, disable=not self.console.is_terminal) as bars:
            bars.add_task("items", total=total, completed=done, counts="")
            self._bars = bars
            yield
        self._bars = None

    def show(self, statistics: Statistics, spent: Spent) -> None:
        """Tell where the work is; called for every item, draws a few times a second."""
        now = time.monotonic()
        terminal = self.console.is_terminal
        if now - self._shown < (_DRAWN_SECONDS if terminal else _PLAIN_SECONDS):
            return
        self._shown = now
        line = describe(statistics, spent, self._left(statistics.items, now))
        if terminal and self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=statistics.items, counts=line)
        else:
            self.console.print(f"items {statistics.items:,} of {self._total:,}: {line}", highlight=False)

    def _left(self, items: int, now: float) -> str:
        worked = items - self._before
        return format_duration((now - self._begun) * (self._total - items) / worked) if worked else "?"


def describe(statistics: Statistics, spent: Spent, left: str = "") -> str:
    """Return a line: the share of tries that each stage let pass, tokens, what is left."""
    parts = []
    before = statistics.tries
    for stage, count in statistics.funnel()[1:]:
        parts.append(f"{stage} {count / before:.0%}" if before else f"{stage} -")
        before = count
    parts.append(f"{format_count(spent.tokens)} tokens spent, {format_count(statistics.kept_tokens)} kept")
    if spent.cost:
        parts.append(f"cost {spent.cost:.2f}")
    return ", ".join(parts) + (f", {left} left" if left else "")
