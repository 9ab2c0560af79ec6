"""How all sites agree on the step after which they stop, although they may be at different ones.

A site that wants to stop pledges the boundary it is at; whoever hears of a pledge answers with one of its own, at once,
even from within a step: the boundary that ends the step in progress. No site passes its own boundary before it knows
all pledges. The latest of them is where everybody stops: a site that is behind goes on to it, and can, since what it
needs of the others on the way was sent by those that are ahead, or is sent by those that follow.
"""

import struct
import threading

from isthmus.parallelism.sites.lane import Exchange, Lane, send_to_all

_STEP = struct.Struct("<Q")
STOP_TAG = (1 << 64) - 1  # no round's number


class StopAgreement:
    """Talks to the other sites on one lane of this site; asked at every step boundary."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._lock = threading.Lock()
        self._next_boundary = 1
        self._pledged: int | None = None
        self._pledges: Exchange | None = None
        lane.listen(STOP_TAG, self._answer)

    def begin(self, step: int) -> None:
        """Training starts after this step."""
        with self._lock:
            self._next_boundary = step + 1

    def stop_after(self, step: int, wanted: bool) -> bool:
        """Return whether all sites stop after this step; `wanted` says whether this one would like to.

        Raises:
            LaneError: a site has gone before it could agree.
        """
        with self._lock:
            if wanted and self._pledges is None:
                self._pledge(step)
            if self._pledges is None or self._pledged is None or step < self._pledged:
                self._next_boundary = step + 1
                return False
        theirs = (int(_STEP.unpack(message)[0]) for message in self._pledges.wait().values())
        return step >= max(self._pledged, *theirs)

    def _answer(self) -> None:
        with self._lock:
            if self._pledges is None:
                self._pledge(self._next_boundary)

    def _pledge(self, step: int) -> None:
        self._pledged = step
        self._pledges = send_to_all(self._lane, STOP_TAG, _STEP.pack(step))
