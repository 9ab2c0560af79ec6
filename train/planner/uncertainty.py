"""How sure a law is: intervals from bootstrap samples, and how far it is stretched."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.train.planner.laws import LAWS, RATIO_LAWS, LossLaw, RatioLaw
from isthmus.train.planner.repetition import LimitedLaw
from isthmus.train.planner.samples import CHINCHILLA_SAMPLES

_LOW, _HIGH = 2.5, 97.5


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What one law says about a budget; intervals are 95% of its bootstrap, None where it has none."""

    law: str
    params: float
    tokens: float
    loss: float | None
    params_interval: tuple[float, float] | None
    loss_interval: tuple[float, float] | None
    extrapolation: float  # budget / the dearest run that the law was fitted to
    source: str

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.params


def samples_of(law: LossLaw) -> list[LossLaw]:
    """Return a law's refits; Besiroglu's are our own bootstrap of the points that it was fitted to."""
    samples = law.samples or (CHINCHILLA_SAMPLES if law.name == "besiroglu" else ())
    return [law.with_constants(sample) for sample in samples]


def opinions(flops: float, own: LossLaw | None = None) -> list[Opinion]:
    """Return what every law holds to be optimal, without limits of data or inference."""
    laws: list[LossLaw | RatioLaw] = [*LAWS.values(), *RATIO_LAWS.values()]
    if own is not None and own.name not in LAWS:
        laws.insert(0, own)
    return [_opinion(law, flops) for law in laws]


def _opinion(law: LossLaw | RatioLaw, flops: float) -> Opinion:
    params, tokens = law.optimum(flops)
    known = isinstance(law, LossLaw)
    spread = [sample.optimum(flops) for sample in samples_of(law)] if isinstance(law, LossLaw) else []
    losses = [sample.loss(params, tokens) for sample in samples_of(law)] if isinstance(law, LossLaw) else []
    return Opinion(
        law=law.name,
        params=params,
        tokens=tokens,
        loss=law.loss(params, tokens) if known and isinstance(law, LossLaw) else None,
        params_interval=interval([entry[0] for entry in spread]),
        loss_interval=interval(losses),
        extrapolation=flops / law.largest_flops,
        source=law.source,
    )


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the middle 95% of values, None where there are none."""
    if not values:
        return None
    low, high = np.percentile(values, [_LOW, _HIGH])
    return float(low), float(high)


def loss_interval(limited: LimitedLaw, params: float, tokens: float, factor: float) -> tuple[float, float] | None:
    """Return the middle 95% of the loss of one (N, D), times `factor`."""
    drawn = [LimitedLaw(law, limited.unique, limited.max_epochs) for law in samples_of(limited.law)]
    return interval([factor * law.loss(params, tokens) for law in drawn])


def extrapolation_note(law: LossLaw, flops: float) -> str | None:
    """Return a warning where a budget lies beyond the runs of a law's fit."""
    times = flops / law.largest_flops
    if flops < law.smallest_flops:
        down = law.smallest_flops / flops
        return f"extrapolating by {down:.3g}x: {law.name} was fitted to runs from {law.smallest_flops:.2g} FLOPs on"
    if times <= 1.0:
        return None
    return f"extrapolating by {times:.3g}x: {law.name} was fitted to runs of up to {law.largest_flops:.2g} FLOPs"
