"""What a run has seen of failures so far: how often they come and what a restart costs, read off its ledger."""

from dataclasses import dataclass
from typing import Any

from isthmus.fault_tolerance.ledger import ORDERLY, REWOUND
from isthmus.units import format_duration


@dataclass(frozen=True)
class Observed:
    """Failures of earlier attempts; going back behind a loss spike is none.

    Attributes:
        running_seconds: of all attempts, this one's first seconds included.
        restart_seconds: from the last sign of an attempt that failed to the first step of the next, on average.
    """

    failures: int = 0
    running_seconds: float = 0.0
    restart_seconds: float = 0.0


def observe(rows: list[dict[str, Any]]) -> Observed:
    """Count failures and their cost in the rows of a ledger."""
    failures, running, restarts = 0, 0.0, 0.0
    begun = last = None
    status = "failed"  # until the attempt says otherwise
    for row in rows:
        if row["what"] == "begin":
            if begun is not None and last is not None:
                running += last - begun
                if status not in (*ORDERLY, REWOUND):
                    failures += 1
                    restarts += row["time"] - last
            begun, status = row["started"], "failed"
        elif row["what"] == "end":
            status = str(row.get("status"))
        last = row["time"]
    if begun is not None and last is not None:
        running += last - begun
    return Observed(failures, running, restarts / failures if failures else 0.0)


@dataclass(frozen=True)
class Risk:
    """What the interval between saves reckons with, and where that comes from."""

    failure_seconds: float
    restart_seconds: float
    failures_seen: int

    def describe(self) -> str:
        """Return the middle of a sentence, after "for a stall and "."""
        source = f"{self.failures_seen} seen in this run" if self.failures_seen else "configured"
        often, cost = _duration(self.failure_seconds), _duration(self.restart_seconds)
        return f"a failure every {often} that costs {cost} to restart ({source})"


def risk_of(observed: Observed, *, running_since: float, failure_seconds: float, restart_seconds: float) -> Risk:
    """Take what was observed, and where nothing was, the configured figures.

    Args:
        running_since: seconds that were not in the ledger yet.
    """
    if not observed.failures:
        return Risk(failure_seconds, restart_seconds, 0)
    between = (observed.running_seconds + running_since) / observed.failures
    return Risk(between, observed.restart_seconds, observed.failures)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 and seconds % 3600 == 0 else format_duration(seconds)
