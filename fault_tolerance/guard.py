"""Looks at loss and gradient norm of every step before the optimizer does: skip the batch, or end the run.

A pure function of the numbers that every rank (and, in exact sync, every site) sees, so that all decide alike.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from statistics import median
from typing import Any

from isthmus.config import key
from isthmus.errors import UserError

_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_SMALLEST_DEVIATION = 1e-3  # of the median: a loss that hardly moves is not a reason to call noise a spike


class Response(Enum):
    off = "off"
    skip = "skip"
    stop = "stop"


@dataclass(kw_only=True, slots=True)
class GuardConfig:
    """What a step must not do. A skipped batch makes no update; its samples are not seen again."""

    nonfinite: Response = key(Response.stop, "at a loss or gradient that is no finite number: skip, stop")
    spike: Response = key(Response.off, "at a loss far above the last ones: off, skip, stop")
    spike_deviations: float = key(8.0, "robust deviations above the median that make a spike")
    explosion: Response = key(Response.off, "at a gradient norm far above the last ones: off, skip, stop")
    explosion_factor: float = key(20.0, "times the median gradient norm that make an explosion")
    window: int = key(100, "accepted steps that the medians are taken of; nothing is judged before half of them")
    max_skips: int = key(20, "skipped batches in any 10 windows; one more ends the run")


class StepGuard:
    """Judges each step by the ones accepted before it.

    Args:
        skip, proceed: what `inspect` returns.
        tell: prints one line for the user.
    """

    def __init__(self, config: GuardConfig, *, skip: Any, proceed: Any, tell: Callable[[str], None]) -> None:
        self._config, self._skip, self._proceed, self._tell = config, skip, proceed, tell
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self._skipped: list[int] = []

    def inspect(self, step: int, loss: float, grad_norm: float) -> Any:
        """Return whether the step is taken.

        Raises:
            UserError: the run must end.
        """
        response, why = self._judge(loss, grad_norm)
        if response is Response.off:
            self._losses.append(loss)
            self._norms.append(grad_norm)
            return self._proceed
        if response is Response.stop:
            fix = "lower optim.learning_rate, lengthen schedule.warmup_tokens or lower optim.clip_grad_norm"
            raise UserError(why, where=f"step {step}", fix=fix)
        self._skipped = [past for past in self._skipped if past > step - 10 * self._config.window] + [step]
        if len(self._skipped) > self._config.max_skips:
            raise UserError(
                f"{why}, and {self._config.max_skips} batches were skipped already",
                where=f"step {step}",
                fix="look at the data, or resume from an older checkpoint with another learning rate",
            )
        logging.warning("step %d: %s; its batch is skipped", step, why)
        self._tell(f"step {step}: {why}; its batch is skipped ({len(self._skipped)} of {self._config.max_skips})")
        return self._skip

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "norms": list(self._norms), "skipped": list(self._skipped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = deque(state.get("losses", []), maxlen=self._config.window)
        self._norms = deque(state.get("norms", []), maxlen=self._config.window)
        self._skipped = list(state.get("skipped", []))

    def _judge(self, loss: float, grad_norm: float) -> tuple[Response, str]:
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return self._config.nonfinite, f"the {name} is {value}"
        if len(self._losses) * 2 >= self._config.window:
            score = robust_score(loss, self._losses)
            if self._config.spike is not Response.off and score > self._config.spike_deviations:
                return self._config.spike, f"the loss {loss:.4f} is {score:.1f} deviations above the last ones"
            factor = grad_norm / max(median(self._norms), 1e-30)
            if self._config.explosion is not Response.off and factor > self._config.explosion_factor:
                return self._config.explosion, f"the gradient norm {grad_norm:.3g} is {factor:.0f} times the last ones"
        return Response.off, ""


def robust_score(value: float, past: "deque[float] | list[float]") -> float:
    """Return how many deviations a value is above the median, the deviation taken from the median distance to it."""
    middle = median(past)
    deviation = _MAD_TO_DEVIATION * median(abs(entry - middle) for entry in past)
    return (value - middle) / max(deviation, _SMALLEST_DEVIATION * abs(middle), 1e-30)


def validate_guard(config: GuardConfig) -> None:
    """Refuse thresholds that mean nothing.

    Raises:
        UserError: names the key.
    """
    if config.nonfinite is Response.off:
        raise UserError("is off", where="guard.nonfinite", fix="choose skip or stop: such a step ruins the parameters")
    for name, value, least in (
        ("spike_deviations", config.spike_deviations, 1.0),
        ("explosion_factor", config.explosion_factor, 1.0),
        ("window", config.window, 4),
        ("max_skips", config.max_skips, 0),
    ):
        if value < least:
            raise UserError(f"is {value}", where=f"guard.{name}", fix=f"it starts at {least:g}")
