"""What a mixture will serve: tokens and epochs by source and phase, what repetition is worth, what to think about."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from isthmus.data.mixture import Mixture
from isthmus.data.order import Order

# Muennighoff et al., arXiv 2305.16264: data repeated R times beyond the first counts as U R*(1 - exp(-R / R*)) more.
_REPETITION_SCALE = 15.387756
_NEARLY_FREE_EPOCHS = 4.0


@dataclass(frozen=True)
class Served:
    """A source in a stretch of the run (or all of it)."""

    tokens: int
    epochs: float  # passed over in the stretch
    share: float
    asked: float  # the share that its weight asked for


@dataclass(frozen=True)
class PhaseAccount:
    name: str
    start_tokens: int
    tokens: int
    sources: dict[str, Served]
    quotas: list[dict[str, int]] = field(default_factory=list)  # of each of its segments

    def real_share(self, synthetic: Mapping[str, bool]) -> float:
        """Return the fraction of its tokens that no synthetic source gives."""
        return 1 - sum(served.share for name, served in self.sources.items() if synthetic.get(name))


@dataclass(frozen=True)
class Account:
    """A whole run, by phase and in total; `unique` are tokens that were served at least once, by source."""

    phases: list[PhaseAccount]
    total: dict[str, Served]
    available: dict[str, int]
    unique: dict[str, int]
    effective: dict[str, float]
    warnings: list[str]
    notes: list[str]


def account(mixture: Mixture, synthetic: Mapping[str, bool], real_floor: float) -> Account:
    """Plan a mixture and add up what it serves.

    Raises:
        UserError: the caps leave too few tokens.
    """
    segments = mixture.segments()
    order = Order(mixture.shapes, segments, mixture.seed)
    length = mixture.window_tokens
    phases, notes, warnings = [], [], []
    bounds = sorted({max(0, min(phase.start, mixture.samples)) for phase in mixture.phases} | {mixture.samples})
    for phase, (start, stop) in zip(mixture.phases, itertools.pairwise(bounds), strict=False):
        counts = order.counts(start, stop)
        asked = _shares(mixture, phase.weights, stop - start, order.counts(0, start))
        served = _served(mixture, counts, asked)
        inside = [segment for segment in segments if start <= segment.start < stop]
        phases.append(
            PhaseAccount(
                phase.name or "whole run",
                start * length,
                (stop - start) * length,
                served,
                [dict(segment.quotas) for segment in inside],
            )
        )
        notes += _caps(mixture, phases[-1], order.counts(0, stop))
    counts = order.counts(0, mixture.samples)
    total = _served(mixture, counts, {name: count / max(mixture.samples, 1) for name, count in counts.items()})
    available = {name: source.shape.windows * length for name, source in mixture.sources.items()}
    unique = {name: min(counts[name] * length, available[name]) for name in counts}
    for name, served_all in total.items():
        if served_all.epochs > _NEARLY_FREE_EPOCHS:
            warnings.append(
                f"{name} is repeated {served_all.epochs:.1f} times: beyond 4 epochs repetition is worth less than new "
                f"text, beyond 16 next to nothing (arXiv 2305.16264)"
            )
        if not served_all.tokens:
            warnings.append(f"{name} gives nothing")
    for entry in [*phases]:
        real = entry.real_share(synthetic)
        if real < real_floor - 1e-9:
            warnings.append(
                f"{entry.name}: {1 - real:.0%} synthetic leaves {real:.0%} real data, below the floor of "
                f"{real_floor:.0%} (data.real_floor): training refuses that"
            )
    for name, source in mixture.sources.items():
        if source.fill < 1:
            notes.append(
                f"{name}: samples are of whole documents and {source.fill:.2%} full; tokens count their padding too"
            )
    effective = {name: effective_tokens(unique[name], total[name].tokens) for name in counts}
    return Account(phases, total, available, unique, effective, warnings, notes)


def effective_tokens(unique: int, served: int) -> float:
    """Return D', the unique tokens that are worth as much as these with repetition (arXiv 2305.16264, equation 5)."""
    if not unique:
        return 0.0
    repetitions = served / unique - 1
    return unique + unique * _REPETITION_SCALE * (1 - math.exp(-repetitions / _REPETITION_SCALE))


def _served(mixture: Mixture, counts: Mapping[str, int], asked: Mapping[str, float]) -> dict[str, Served]:
    samples = max(sum(counts.values()), 1)
    return {
        name: Served(
            tokens=count * mixture.window_tokens,
            epochs=count / mixture.sources[name].shape.windows,
            share=count / samples,
            asked=asked.get(name, 0.0),
        )
        for name, count in sorted(counts.items())
    }


def _shares(mixture: Mixture, weights: Mapping[str, float], samples: int, given: Mapping[str, int]) -> dict[str, float]:
    found = mixture.weights(weights, samples, given)
    total = sum(found.values()) or 1.0
    return {name: weight / total for name, weight in found.items()}


def _caps(mixture: Mixture, phase: PhaseAccount, until: Mapping[str, int]) -> list[str]:
    """Say which caps took tokens from a source in this phase, and who got them."""
    lost, gained = {}, {}
    for name, served in phase.sources.items():
        difference = (served.share - served.asked) * phase.tokens
        cap = mixture.sources[name].cap
        if cap is not None and difference < -mixture.window_tokens and until[name] >= 0.999 * cap - 1:
            lost[name] = -difference
        elif difference > mixture.window_tokens:
            gained[name] = difference
    if not lost:
        return []
    taken = ", ".join(f"{name} {tokens:,.0f}" for name, tokens in lost.items())
    given = ", ".join(f"{name} {tokens:,.0f}" for name, tokens in gained.items())
    return [f"{phase.name}: max_epochs binds; tokens not taken from {taken} come from {given or 'no other source'}"]
