"""The learning rate as a function of tokens: pure arithmetic."""

import math

from isthmus.errors import UserError
from isthmus.train.config import ScheduleConfig, ScheduleKind


class Schedule:
    """Linear warm-up to the peak, then by kind.

    cosine: half a cosine from the peak to `final_fraction` of it at the end of the run (arXiv 2203.15556, figure A1).
    wsd: constant, then 1 - sqrt(progress) down to `final_fraction` over the last `decay_fraction` of the run
    (arXiv 2405.18392, equation 1).
    constant: constant.
    """

    def __init__(self, config: ScheduleConfig, *, peak: float, total_tokens: int) -> None:
        self.kind, self.peak, self.total_tokens = config.kind, peak, total_tokens
        self.final = config.final_fraction
        warmup = config.warmup_tokens
        self.warmup_tokens = round(config.warmup_fraction * total_tokens) if warmup is None else warmup
        self.decay_tokens = round(config.decay_fraction * total_tokens)

    def __call__(self, tokens: int) -> float:
        """Return the learning rate of the step that ends at `tokens`, so that the first step's is not zero."""
        if tokens < self.warmup_tokens:
            return self.peak * tokens / self.warmup_tokens
        return self.peak * self._fraction(min(tokens, self.total_tokens))

    def _fraction(self, tokens: int) -> float:
        if self.kind is ScheduleKind.cosine:
            span = max(1, self.total_tokens - self.warmup_tokens)
            progress = (tokens - self.warmup_tokens) / span
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
        if self.kind is ScheduleKind.wsd:
            decayed = tokens - (self.total_tokens - self.decay_tokens)
            if decayed > 0:
                return self.final + (1 - self.final) * (1 - math.sqrt(decayed / self.decay_tokens))
        return 1.0


def validate_schedule(config: ScheduleConfig, total_tokens: int) -> None:
    """Refuse a schedule that does not fit into the run.

    Raises:
        UserError: a fraction outside 0..1, or warm-up and decay longer than the run.
    """
    for name in ("warmup_fraction", "decay_fraction", "final_fraction"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"is {getattr(config, name)}", where=f"schedule.{name}", fix="choose a fraction of 0 to 1")
    if config.warmup_tokens is not None and config.warmup_tokens < 0:
        raise UserError(f"is {config.warmup_tokens}", where="schedule.warmup_tokens", fix="it starts at 0")
    schedule = Schedule(config, peak=1.0, total_tokens=total_tokens)
    decay = schedule.decay_tokens if config.kind is ScheduleKind.wsd else 0
    if schedule.warmup_tokens + decay > total_tokens:
        raise UserError(
            f"warm-up {schedule.warmup_tokens} + decay {decay} tokens exceed the run's {total_tokens}",
            where="schedule",
            fix="shorten one of them",
        )
