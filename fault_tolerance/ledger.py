"""Where the time of a run went, over all its attempts: every second is booked to one cause.

One row a step goes to `ledger.jsonl`; what an attempt that was killed had not saved becomes lost work when the next one
resumes an earlier step.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

USEFUL = ("data", "compute", "sync")
CAUSES = ("init", *USEFUL, "checkpoint", "evaluation", "lost", "recovery", "idle", "other")
ORDERLY = ("completed", "preempted", "interrupted")  # how an attempt ends that did not fail
REWOUND = "rewound"
DECISIONS = {"skip": "skipped batch(es)", "rewind": "rewind(s)", "stop": "stop(s)"}


class RunLedger:
    """Books the seconds of this attempt.

    Args:
        path: of ledger.jsonl; None on ranks that only measure.
        started: when this process began, in seconds since 1970.
        entered: told the cause of the time that begins now: who watches for hangs, or causes some, listens here.
    """

    def __init__(self, path: Path | None, started: float, entered: Callable[[str], None] = lambda cause: None) -> None:
        self._path, self._started, self._entered = path, started, entered
        self._seconds: dict[str, float] = {}
        self._file = path.open("a", encoding="utf-8") if path is not None else None
        self._since = started

    @contextmanager
    def book(self, cause: str) -> Iterator[None]:
        begun = time.time()
        self._entered(cause)
        try:
            yield
        finally:
            self._add(cause, time.time() - begun)
            self._entered("other")

    def seconds_of(self, cause: str) -> float:
        """Return what was booked to a cause since the last step."""
        return self._seconds.get(cause, 0.0)

    def begin(self, step: int) -> None:
        """Training starts after this step: all until now was for starting."""
        self._entered("other")
        self._write("begin", step, {"init": time.time() - self._started})
        self._since, self._seconds = time.time(), {}

    def step(self, step: int) -> None:
        """A step has ended."""
        now = time.time()
        self._add("other", now - self._since - sum(self._seconds.values()))
        self._write("step", step, self._seconds)
        self._since, self._seconds = now, {}

    def decided(self, step: int, decision: str, why: str) -> None:
        """The guard has judged a step: skip, rewind or stop."""
        self._write("guard", step, {"decision": decision, "why": why})

    def close(self, status: str) -> None:
        if self._file is not None:
            self._write("end", -1, {**self._seconds, "status": status})
            self._file.close()
            self._file = None

    def _add(self, cause: str, seconds: float) -> None:
        self._seconds[cause] = self._seconds.get(cause, 0.0) + max(seconds, 0.0)

    def _write(self, what: str, step: int, seconds: dict[str, Any]) -> None:
        if self._file is not None:
            row = {"what": what, "step": step, "started": self._started, "time": time.time(), **seconds}
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()


def summarize(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each cause over all attempts, `elapsed`, and `goodput`: useful seconds of kept steps.

    With them the number of each of the guard's decisions, as `guard_skip` and so on, where there were any.
    Between attempts, time counts as idle where the run was stopped in good order, and as recovery where it failed.
    """
    totals = dict.fromkeys(CAUSES, 0.0)
    kept: dict[int, dict[str, float]] = {}  # of each step that still counts, what it was spent on
    last_time, orderly = None, True
    attempts = 0
    decisions: dict[str, float] = {}
    for row in rows:
        if row["what"] == "begin":
            attempts += 1
            if last_time is not None:
                totals["idle" if orderly else "recovery"] += max(row["started"] - last_time, 0.0)
            totals["init" if attempts == 1 or orderly else "recovery"] += row["init"]
            for step in [step for step in kept if step > row["step"]]:
                totals["lost"] += sum(kept.pop(step).values())
            orderly = False
        elif row["what"] == "guard":
            name = f"guard_{row['decision']}"
            decisions[name] = decisions.get(name, 0) + 1
        else:
            seconds = {cause: float(row[cause]) for cause in CAUSES if cause in row}
            for cause, spent in seconds.items():
                if cause not in USEFUL:
                    totals[cause] += spent
            if row["what"] == "step":
                if row["step"] in kept:
                    totals["lost"] += sum(kept[row["step"]].values())
                kept[row["step"]] = {cause: seconds.get(cause, 0.0) for cause in USEFUL}
            else:
                orderly = row.get("status") in ORDERLY
        last_time = row["time"]
    for parts in kept.values():
        for cause, spent in parts.items():
            totals[cause] += spent
    elapsed = (last_time - rows[0]["started"]) if rows and last_time is not None else 0.0
    useful = sum(totals[cause] for cause in USEFUL)
    return {**totals, **decisions, "elapsed": elapsed, "goodput": useful / elapsed if elapsed else 0.0}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ledger; a line that a crash left incomplete is passed over."""
    rows = []
    with suppress(OSError):
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "what" in row]


def describe(totals: dict[str, float]) -> str:
    """Return the summary in one line, the largest losses first."""
    names = {"init": "starting", "lost": "lost work", "idle": "stopped"}
    losses = {cause: totals[cause] for cause in CAUSES if cause not in USEFUL and totals[cause] >= 0.05}
    parts = [f"{names.get(cause, cause)} {losses[cause]:.1f} s" for cause in sorted(losses, key=lambda c: -losses[c])]
    where = f"; the rest: {', '.join(parts)}" if parts else ""
    decided = [f"{totals[f'guard_{name}']:.0f} {what}" for name, what in DECISIONS.items() if f"guard_{name}" in totals]
    guard = f"; guard: {', '.join(decided)}" if decided else ""
    return f"goodput {totals['goodput']:.1%} of {totals['elapsed']:.1f} s over all attempts{where}{guard}"
