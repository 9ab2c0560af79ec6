"""What a person sees while a run trains: a live line in a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from isthmus.train.report import StepReport
from isthmus.units import format_count, format_duration

_SECONDS_BETWEEN_PLAIN_LINES = 5.0
_SMOOTHING = 0.9


class ConsoleProgress:
    """Step, loss, tokens/s and time left. The rate is a moving average, so that one slow step does not shake it."""

    def __init__(self, console: Console, total_steps: int) -> None:
        self._console, self._total = console, total_steps
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._rate = 0.0
        self._step_seconds = 0.0
        self._printed = 0.0

    def start(self, step: int, tokens: int, held_out: dict[str, float] | None) -> None:
        if held_out is not None:
            self._console.print(f"step {step}  {_describe(held_out)}", highlight=False)
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[figures]}"))
            self._live = Progress(*columns, console=self._console, transient=True)
            self._live.start()
            self._task = self._live.add_task("training", total=self._total, completed=step, figures="")

    def step(self, report: StepReport, held_out: dict[str, float] | None) -> None:
        seconds = report.step_seconds
        weight = _SMOOTHING if self._rate else 0.0
        self._rate = weight * self._rate + (1 - weight) * report.step_tokens / max(seconds, 1e-9)
        self._step_seconds = weight * self._step_seconds + (1 - weight) * seconds
        left = format_duration(self._step_seconds * (self._total - report.step))
        figures = (
            f"step {report.step}/{self._total}  loss {report.loss:.4f}  "
            f"{format_count(self._rate)} tokens/s  {left} left"
        )
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=report.step, figures=figures)
        elif time.monotonic() - self._printed > _SECONDS_BETWEEN_PLAIN_LINES or report.step == self._total:
            self._printed = time.monotonic()
            self._console.print(figures, highlight=False)
        if held_out is not None:
            self._console.print(f"step {report.step}  {_describe(held_out)}", highlight=False)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _describe(held_out: dict[str, float]) -> str:
    return "held-out loss: " + ", ".join(f"{source} {loss:.4f}" for source, loss in held_out.items())
