"""Looks at loss and gradient norm of every step before the optimizer does: skip the batch, go back, or end the run.

A pure function of the numbers that every rank (and, in exact sync, every site) sees, so that all decide alike. With
local sync each site judges its own loss; a wish to go back is put to all (`fault_tolerance.rewinds`).
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
    rewind = "rewind"
    stop = "stop"


@dataclass(kw_only=True, slots=True)
class GuardConfig:
    """What a step must not do. A skipped batch makes no update; its samples are not seen again.

    A rewind goes back to a checkpoint from before the spike and leaves out the batches around it (PaLM, arXiv
    2204.02311, section 5.1: about 100 steps back, 200 - 500 batches, about 20 times in a run).
    """

    nonfinite: Response = key(Response.stop, "at a loss or gradient that is no finite number: skip, rewind, stop")
    spike: Response = key(Response.off, "at a loss far above the last ones: off, skip, rewind, stop")
    spike_deviations: float = key(8.0, "robust deviations above the median that make a spike")
    explosion: Response = key(Response.off, "at a gradient norm far above the last ones: off, skip, rewind, stop")
    explosion_factor: float = key(20.0, "times the median gradient norm that make an explosion")
    window: int = key(100, "accepted steps that the medians are taken of; nothing is judged before half of them")
    max_skips: int = key(20, "skipped batches in any 10 windows; one more ends the run")
    rewind_steps: int = key(100, "rewind: the checkpoint is at least so many steps older (or the oldest there is)")
    rewind_skip_before: int = key(100, "rewind: batches before the offending one that are left out with it")
    rewind_skip_after: int = key(100, "rewind: batches after it that are left out too")
    max_rewinds: int = key(20, "rewinds of a run; one more ends it")


class StepGuard:
    """Judges each step by the ones accepted before it.

    Args:
        skip, proceed: what `inspect` returns.
        tell: prints one line for the user.
        record: keeps (step, decision, reason) for ledger and metrics.
        go_back: asks for a rewind because of (step, reason); all sites agree on it at the end of a step.
        rewinds: how many the run has made.
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        skip: Any,
        proceed: Any,
        tell: Callable[[str], None],
        record: Callable[[int, str, str], None] = lambda step, decision, why: None,
        go_back: Callable[[int, str], None] = lambda step, why: None,
        rewinds: Callable[[], int] = lambda: 0,
    ) -> None:
        self._config, self._skip, self._proceed, self._tell = config, skip, proceed, tell
        self._record, self._go_back, self._rewinds = record, go_back, rewinds
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self._skipped: list[int] = []
        self._going_back = False

    def inspect(self, step: int, loss: float, grad_norm: float) -> Any:
        """Return whether the step is taken.

        Raises:
            UserError: the run must end.
        """
        if self._going_back:
            return self._skip  # until all sites have reached the step after which they go back together
        response, why = self._judge(loss, grad_norm)
        if response is Response.off:
            self._losses.append(loss)
            self._norms.append(grad_norm)
            return self._proceed
        if response is Response.skip:
            return self._leave_out(step, why)
        if response is Response.rewind and self._rewinds() < self._config.max_rewinds:
            self._going_back = True
            self._decide(step, "rewind", why)
            self._go_back(step, why)
            return self._skip
        self._decide(step, "stop", why)
        if response is Response.rewind:
            raise UserError(
                f"{why}, and the run went back {self._config.max_rewinds} times already",
                where=f"step {step}",
                fix="look at the data, lower optim.learning_rate, or raise guard.max_rewinds",
            )
        fix = "lower optim.learning_rate, lengthen schedule.warmup_tokens or lower optim.clip_grad_norm"
        raise UserError(why, where=f"step {step}", fix=fix)

    def rewinding(self) -> bool:
        """Return whether the run is to go back after this step."""
        return self._going_back

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "norms": list(self._norms), "skipped": list(self._skipped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._losses = deque(state.get("losses", []), maxlen=self._config.window)
        self._norms = deque(state.get("norms", []), maxlen=self._config.window)
        self._skipped = list(state.get("skipped", []))

    def _leave_out(self, step: int, why: str) -> Any:
        self._skipped = [past for past in self._skipped if past > step - 10 * self._config.window] + [step]
        if len(self._skipped) > self._config.max_skips:
            self._decide(step, "stop", why)
            raise UserError(
                f"{why}, and {self._config.max_skips} batches were skipped already",
                where=f"step {step}",
                fix="look at the data, or resume from an older checkpoint with another learning rate",
            )
        self._decide(step, "skip", why)
        self._tell(f"step {step}: {why}; its batch is skipped ({len(self._skipped)} of {self._config.max_skips})")
        return self._skip

    def _decide(self, step: int, decision: str, why: str) -> None:
        logging.warning("guard: step %d: %s: %s", step, decision, why)
        self._record(step, decision, why)

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
        raise UserError(
            "is off", where="guard.nonfinite", fix="choose skip, rewind or stop: such a step ruins the parameters"
        )
    for name, value, least in (
        ("spike_deviations", config.spike_deviations, 1.0),
        ("explosion_factor", config.explosion_factor, 1.0),
        ("window", config.window, 4),
        ("max_skips", config.max_skips, 0),
        ("rewind_steps", config.rewind_steps, 1),
        ("rewind_skip_before", config.rewind_skip_before, 0),
        ("rewind_skip_after", config.rewind_skip_after, 0),
        ("max_rewinds", config.max_rewinds, 0),
    ):
        if value < least:
            raise UserError(f"is {value}", where=f"guard.{name}", fix=f"it starts at {least:g}")
