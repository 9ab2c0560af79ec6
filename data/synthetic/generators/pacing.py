"""When the next request may leave: rates that are never passed, and pauses that a server asks for."""

import threading
from collections.abc import Callable

_MINUTE = 60.0


class Pace:
    """Shared by the threads that send.

    A request takes its place in a row that moves at the allowed rates, so that there are no bursts.

    Args:
        stopped: ends every wait.
    """

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float],
        stopped: threading.Event,
    ) -> None:
        self._per_request = _MINUTE / requests_per_minute if requests_per_minute else 0.0
        self._per_token = _MINUTE / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._stopped = clock, stopped
        self._lock = threading.Lock()
        self._next = self._held_until = clock()

    def wait(self, tokens: int) -> None:
        """Return when a request of so many tokens may leave."""
        while True:
            with self._lock:
                leaves = max(self._next, self._clock())
                self._next = leaves + max(self._per_request, self._per_token * tokens)
            self._until(leaves)
            with self._lock:
                # A pause for everyone that began meanwhile sends those in the row to its end, so that none bursts.
                if self._held_until <= leaves or self._stopped.is_set():
                    return

    def pause(self, seconds: float, *, everyone: bool) -> None:
        """Wait; with `everyone`, no other thread's request leaves before it is over either."""
        over = self._clock() + seconds
        if everyone:
            with self._lock:
                self._held_until = max(self._held_until, over)
                self._next = max(self._next, over)
        self._until(over)

    def _until(self, moment: float) -> None:
        while (left := moment - self._clock()) > 0 and not self._stopped.wait(left):
            pass
