"""Which rank is slow: compared by the time that each spends on its own work, which nobody else can lengthen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low


@dataclass(frozen=True)
class Comparison:
    """The slowest rank over some steps.

    Attributes:
        scores: of the slowest ranks, the slowest first: their own time over the median of their peers'.
        data_seconds, forward_seconds: of the slowest rank, a step.
        peers_seconds: median of its peers' own time, a step.
    """

    scores: dict[int, float]
    data_seconds: float
    forward_seconds: float
    peers_seconds: float

    @property
    def rank(self) -> int:
        return next(iter(self.scores))

    @property
    def score(self) -> float:
        return self.scores[self.rank]

    def describe(self) -> str:
        own = self.data_seconds + self.forward_seconds
        return (
            f"slowest rank {self.rank}: {self.score:.2f} times the median of its peers, {own:.3f} s of own work a step "
            f"(data {self.data_seconds:.3f}, forward {self.forward_seconds:.3f}) against {self.peers_seconds:.3f}"
        )


class Stragglers:
    """Adds up this rank's own time and compares it with the others' every so many steps, in one small reduction.

    A rank's peers are those of its pipeline stage, which do the same work, or all where it is alone there.

    Args:
        stages: pipeline stage of each rank.
        every: steps between comparisons.
        sum_over_ranks: adds up lists of numbers over the ranks of the site, which all call it together.
    """

    SHOWN = 8

    def __init__(
        self,
        rank: int,
        stages: Sequence[int],
        *,
        every: int,
        sum_over_ranks: Callable[[list[float]], list[float]],
    ) -> None:
        self._rank, self._stages, self._every, self._sum = rank, stages, every, sum_over_ranks
        self._since = [0.0, 0.0, 0.0]  # data, forward, steps
        self._all = [0.0, 0.0, 0.0]

    def step(self, step: int, data_seconds: float, forward_seconds: float) -> Comparison | None:
        """A step has ended; return a comparison when one is due."""
        for sums in (self._since, self._all):
            sums[0] += data_seconds
            sums[1] += forward_seconds
            sums[2] += 1
        if step % self._every:
            return None
        compared = self._compare(self._since)
        self._since = [0.0, 0.0, 0.0]
        return compared

    def whole_run(self) -> Comparison | None:
        """Return the comparison over all steps of this attempt; all ranks call it together."""
        return self._compare(self._all)

    def _compare(self, sums: list[float]) -> Comparison | None:
        size = len(self._stages)
        mine = [0.0] * (2 * size)
        if sums[2]:
            mine[2 * self._rank : 2 * self._rank + 2] = [sums[0] / sums[2], sums[1] / sums[2]]
        return compare(self._sum(mine), self._stages)


def compare(seconds: Sequence[float], stages: Sequence[int]) -> Comparison | None:
    """Compare the (data, forward) seconds of all ranks, one after the other; None where there is nothing to compare.

    Of two peers the faster is taken for the median: the slow one must not hide in their mean.
    """
    own = [seconds[2 * rank] + seconds[2 * rank + 1] for rank in range(len(stages))]
    if len(own) < 2 or min(own) <= 0:
        return None
    by_stage = {stage: [own[rank] for rank, at in enumerate(stages) if at == stage] for stage in set(stages)}
    medians = {stage: median_low(times if len(times) > 1 else own) for stage, times in by_stage.items()}
    scores = {rank: own[rank] / medians[stages[rank]] for rank in range(len(own))}
    slowest = sorted(scores, key=lambda rank: -scores[rank])[: Stragglers.SHOWN]
    first = slowest[0]
    return Comparison(
        scores={rank: scores[rank] for rank in slowest},
        data_seconds=seconds[2 * first],
        forward_seconds=seconds[2 * first + 1],
        peers_seconds=medians[stages[first]],
    )
