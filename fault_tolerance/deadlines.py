"""How long a phase of a step may take before it is taken to hang: learnt from how long it took."""

import heapq
from collections import deque
from collections.abc import Mapping

_REMEMBERED = 256  # durations of each phase
_SEEN_BEFORE_JUDGED = 3


class Deadlines:
    """Deadlines by phase, in seconds.

    Args:
        first: of a phase that was not seen often enough yet.
        floor: the least.
        factor: times the longest duration remembered, the single longest left out.
        floors: of phases that have a higher one.
        suspicion: the least until a phase is suspected.
    """

    def __init__(
        self,
        *,
        first: float,
        floor: float,
        factor: float,
        floors: Mapping[str, float] | None = None,
        suspicion: float = 0.0,
    ) -> None:
        self._first, self._floor, self._factor, self._floors = first, floor, factor, dict(floors or {})
        self._suspicion = suspicion
        self._seen: dict[str, deque[float]] = {}
        self._longest: dict[str, float] = {}

    def observe(self, phase: str, seconds: float) -> None:
        """A phase has ended."""
        seen = self._seen.setdefault(phase, deque(maxlen=_REMEMBERED))
        forgotten = seen[0] if len(seen) == seen.maxlen else 0.0
        seen.append(seconds)
        longest = self._longest.get(phase, 0.0)
        # Most durations change nothing: neither the new one nor the forgotten one is among the longest.
        if seconds >= longest or forgotten >= longest or len(seen) <= _SEEN_BEFORE_JUDGED:
            self._longest[phase] = heapq.nlargest(2, seen)[-1]

    def of(self, phase: str) -> float:
        """Return the deadline of a phase that begins now."""
        floor = max(self._floor, self._floors.get(phase, 0.0))
        if len(self._seen.get(phase, ())) < _SEEN_BEFORE_JUDGED:
            return max(self._first, floor)
        return max(floor, self._factor * self._longest[phase])

    def suspicion(self, phase: str) -> float:
        """Return how long a phase that begins now may last before it is looked into, which ends nothing."""
        return max(self._suspicion, self._factor * self._longest.get(phase, 0.0))
