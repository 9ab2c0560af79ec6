"""When to save: every so many steps, or as often as what a save costs and how often the run fails make it worth."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isthmus.fault_tolerance.config import CheckpointConfig
from isthmus.fault_tolerance.interval import daly_interval, expected_goodput
from isthmus.fault_tolerance.ledger import read_rows
from isthmus.fault_tolerance.observed import Observed, Risk, observe, risk_of

_STEPS_TO_MEASURE = 10
_ASSUMED_STALL_SECONDS = 1.0


class SaveSchedule:
    """Says after which steps to save; all ranks of all sites alike.

    Args:
        ledger: of the run, where earlier attempts have left what they saw of failures; read on the rank that `leads`.
        ask_sites: returns the messages of the leading ranks of all sites.
        tell: prints one line for the user.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        ledger: Path,
        *,
        leads: bool,
        ask_sites: Callable[[dict[str, Any]], list[dict[str, Any]]],
        tell: Callable[[str], None],
    ) -> None:
        self._config, self._ledger, self._leads, self._ask_sites, self._tell = config, ledger, leads, ask_sites, tell
        self._stall_seconds = _ASSUMED_STALL_SECONDS
        self._first_step, self._began = 0, time.monotonic()
        self._next = 0  # the step after which auto saves
        self._observed: Observed | None = None
        self._observed_at = 0.0

    def begin(self, step: int) -> None:
        """Training starts after this step."""
        self._first_step, self._began = step, time.monotonic()

    def is_due(self, step: int) -> bool:
        every = self._config.every_steps
        if isinstance(every, int):
            return every > 0 and step % every == 0
        if step == self._first_step + _STEPS_TO_MEASURE:
            self._plan_next(step)
        return step == self._next

    def saved(self, step: int, stall_seconds: float) -> None:
        """A save after this step has held up training for so long."""
        self._stall_seconds = stall_seconds
        if not isinstance(self._config.every_steps, int):
            self._plan_next(step)

    def _plan_next(self, step: int) -> None:
        """Choose the step of the next save: the latest that any site wishes."""
        seconds_per_step = (time.monotonic() - self._began) / max(step - self._first_step, 1)
        risk = self._risk()
        interval = daly_interval(self._stall_seconds, risk.failure_seconds)
        steps = max(1, round(interval / max(seconds_per_step, 1e-6)))
        self._next = max(int(wish["next"]) for wish in self._ask_sites({"next": step + steps}))
        if self._leads and step == self._first_step + _STEPS_TO_MEASURE:
            kept = expected_goodput(interval, self._stall_seconds, risk.failure_seconds, risk.restart_seconds)
            self._tell(
                f"checkpoints every {self._next - step} steps ({interval:.0f} s, Daly's interval for a stall of "
                f"{self._stall_seconds:.1f} s and {risk.describe()}): {kept:.1%} of the time is left for training"
            )

    def _risk(self) -> Risk:
        """Return how often the run fails and what that costs: as it was seen, where it was seen, else as configured."""
        if self._observed is None:
            self._observed = observe(read_rows(self._ledger) if self._leads else [])
            self._observed_at = time.monotonic()
        return risk_of(
            self._observed,
            running_since=time.monotonic() - self._observed_at,
            failure_seconds=3600 * self._config.failure_hours,
            restart_seconds=self._config.restart_seconds,
        )
