"""From weights, caps and phases to segments of fixed quotas: who serves what, planned before the first sample."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from isthmus.data.config import DataConfig, Mixing
from isthmus.data.order import Order, Segment, Shape, quotas_of
from isthmus.errors import UserError


@dataclass(frozen=True)
class MixSource:
    """A source as the plan sees it; `fingerprint` changes with its content, `fill` is the part that is no padding."""

    shape: Shape
    fingerprint: str
    weight: float = 1.0
    max_epochs: float | None = None
    fill: float = 1.0

    @property
    def cap(self) -> int | None:
        """Return the most windows that it may ever give."""
        return None if self.max_epochs is None else math.floor(Fraction(str(self.max_epochs)) * self.shape.windows)


@dataclass(frozen=True)
class Phase:
    """The samples [start, stop) and the weights that differ in them; `stop` is None for the rest of the run."""

    name: str
    start: int
    stop: int | None
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixture:
    """Everything that the order of a run follows from.

    Args:
        samples: length of the run, which caps and unimax are planned for.
        window_tokens: tokens of a sample.
    """

    sources: Mapping[str, MixSource]
    phases: Sequence[Phase]
    seed: int
    samples: int
    window_tokens: int
    mixing: Mixing = Mixing.weights
    temperature: float = 1.0
    unimax_epochs: float = 4.0

    def describe(self) -> dict[str, Any]:
        """Return plain values that differ if anything that the order follows from does."""
        return {
            "seed": self.seed,
            "samples": self.samples,
            "window_tokens": self.window_tokens,
            "mixing": [self.mixing.name, self.temperature, self.unimax_epochs],
            "phases": [[phase.name, phase.start, phase.stop, dict(phase.weights)] for phase in self.phases],
            "sources": {
                name: [source.fingerprint, vars(source.shape), source.weight, source.max_epochs]
                for name, source in sorted(self.sources.items())
            },
        }

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: source.shape for name, source in self.sources.items()}

    def segments(self, start: int = 0, used: Mapping[str, int] | None = None) -> list[Segment]:
        """Plan from sample `start` to the end, where the sources have given `used` windows before.

        A phase is one segment, with capped sources at the share that their cap leaves them. Where rounding would let
        one pass its cap, the segment is cut there and the rest planned without it.

        Raises:
            UserError: the caps of a phase leave too few windows.
        """
        given = dict.fromkeys(self.sources, 0) | dict(used or {})
        planned: list[Segment] = []
        for number, phase in enumerate(self.phases):
            last = number == len(self.phases) - 1
            first = max(phase.start, start)
            stop = self.samples if last or phase.stop is None else min(phase.stop, self.samples)
            while first < stop or (last and not planned):
                segment, until = self._segment(phase, first, max(stop, first + 1), given)
                planned.append(segment)
                served = Order(self.shapes, [Segment(0, segment.quotas)], 0).counts(0, until - first)
                for name, count in served.items():
                    given[name] += count
                first = until
        return planned

    def _segment(self, phase: Phase, first: int, stop: int, given: Mapping[str, int]) -> tuple[Segment, int]:
        most = {name: self._most(source) for name, source in self.sources.items()}
        left = {name: None if count is None else max(0, count - given[name]) for name, count in most.items()}
        weights = self.weights(phase.weights, stop - first, given)
        open_to = {name: weight for name, weight in weights.items() if weight > 0 and left[name] != 0}
        limit = "unimax_epochs or max_epochs" if self.mixing is Mixing.unimax else "max_epochs"
        shares, capped = fill(open_to, {name: left[name] for name in open_to}, stop - first, phase.name, limit)
        quotas = quotas_of(shares, capped=capped)
        turns = Order(self.shapes, [Segment(0, quotas)], 0)
        until = stop
        for name, allowed in left.items():
            if name in quotas and allowed is not None and turns.counts(0, stop - first)[name] > allowed:
                until = min(until, first + _samples_until(turns, name, allowed, stop - first))
        return Segment(first, quotas, phase.name), until

    def _most(self, source: MixSource) -> int | None:
        """Return the most windows that a source may give in the run."""
        if self.mixing is not Mixing.unimax:
            return source.cap
        own = math.floor(Fraction(str(self.unimax_epochs)) * source.shape.windows)
        return own if source.cap is None else min(own, source.cap)

    def weights(
        self, of_phase: Mapping[str, float], samples: int, given: Mapping[str, int] | None = None
    ) -> dict[str, float]:
        """Return the relative shares that sources ask for in a phase of so many samples, before any cap.

        Args:
            given: the windows that each source has given before the phase, which count for unimax.
        """
        own = {name: of_phase.get(name, source.weight) for name, source in self.sources.items()}
        tokens = {name: source.shape.windows * self.window_tokens for name, source in self.sources.items()}
        if self.mixing is Mixing.temperature:
            return {name: weight * tokens[name] ** (1 / self.temperature) for name, weight in own.items()}
        if self.mixing is Mixing.unimax:
            taking_part = {name: tokens[name] for name, weight in own.items() if weight > 0}
            before = {name: count * self.window_tokens for name, count in (given or {}).items()}
            budget = samples * self.window_tokens
            return dict.fromkeys(own, 0.0) | unimax(taking_part, budget, self.unimax_epochs, before)
        return own


def fill(
    weights: Mapping[str, float],
    left: Mapping[str, int | None],
    samples: int,
    phase: str = "",
    limit: str = "max_epochs",
) -> tuple[dict[str, Fraction], frozenset[str]]:
    """Return each source's share of some samples, and which sources give all that is left of them.

    A source whose weight asks for more than is left gives what is left; the others take its place in the proportion of
    their weights.

    Raises:
        UserError: all together have fewer windows left than the samples.
    """
    bounded = [count for count in left.values() if count is not None]
    if len(bounded) == len(left) and sum(bounded) < samples:
        parts = " + ".join(f"{name} {left[name]:,}" for name in left) or "none"
        raise UserError(
            f"needs {samples:,} samples, and {limit} leaves {sum(bounded):,} ({parts})",
            where=f"data.phases ({phase})" if phase else "data.sources",
            fix=f"raise {limit}, add data or shorten the run",
        )
    shares: dict[str, Fraction] = {}
    open_to, rest = dict(weights), Fraction(samples)
    while True:
        total = sum(map(Fraction, open_to.values()))
        wanted = {name: rest * Fraction(weight) / total for name, weight in open_to.items()}
        over = {name: Fraction(count) for name in open_to if (count := left[name]) is not None and wanted[name] > count}
        if not over:
            return shares | wanted, frozenset(shares)
        shares |= over
        rest -= sum(over.values())
        open_to = {name: weight for name, weight in open_to.items() if name not in over}
        if not open_to or rest <= 0:
            return shares, frozenset(shares)


def unimax(
    tokens: Mapping[str, int], budget: int, epochs: float, before: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Return the tokens that each source gives: smallest first, an equal share of what is left of the budget each, but
    with what it has given `before` at most `epochs` of its own (UniMax, arXiv 2304.09151, algorithm 1).
    """
    left = {name: max(0.0, epochs * count - (before or {}).get(name, 0)) for name, count in tokens.items()}
    given: dict[str, float] = {}
    rest = float(budget)
    for number, name in enumerate(sorted(tokens, key=lambda name: (left[name], name))):
        given[name] = min(rest / (len(tokens) - number), left[name])
        rest -= given[name]
    return given


def phases_of(config: DataConfig, window_tokens: int) -> list[Phase]:
    """Turn lengths in tokens into ranges of samples.

    Raises:
        UserError: a phase without a length that is not the last, or a weight for a source that does not exist.
    """
    if not config.phases:
        return [Phase("", 0, None)]
    phases, start = [], 0
    for number, phase in enumerate(config.phases):
        where = f"data.phases.{number}"
        if unknown := sorted(set(phase.weights) - set(config.sources)):
            raise UserError(f"there is no source '{unknown[0]}'", where=f"{where}.weights", fix="name one of sources")
        if any(weight < 0 for weight in phase.weights.values()):
            raise UserError("a weight is negative", where=f"{where}.weights", fix="0 leaves a source out")
        if phase.tokens is None and number < len(config.phases) - 1:
            raise UserError("is not given", where=f"{where}.tokens", fix="only the last phase may go to the end")
        if phase.tokens is not None and phase.tokens < window_tokens:
            raise UserError(f"is {phase.tokens}", where=f"{where}.tokens", fix=f"a sample has {window_tokens}")
        stop = None if phase.tokens is None else start + round(phase.tokens / window_tokens)
        phases.append(Phase(phase.name or f"phase {number + 1}", start, stop, dict(phase.weights)))
        start = stop or start
    return phases


def _samples_until(turns: Order, name: str, allowed: int, bound: int) -> int:
    """Return the largest number of samples, at most `bound`, of which a source gives no more than it may."""
    low, high = 0, bound
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if turns.counts(0, middle)[name] <= allowed else (low, middle - 1)
    return max(low, 1)
