"""Stop requests by signal: the first asks, the second insists."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class StopRequest:
    """Set by SIGINT (Ctrl-C), by SIGTERM or SIGUSR2 (a scheduler's), or by the clock; looked at between steps.

    Args:
        limit_seconds: from now on, after which it is set; None for never.
    """

    def __init__(self, limit_seconds: float | None = None) -> None:
        self.received: signal.Signals | None = None
        self._ends_at = None if limit_seconds is None else time.monotonic() + limit_seconds
        self._interrupts = 0

    def __call__(self) -> bool:
        return self.received is not None or (self._ends_at is not None and time.monotonic() > self._ends_at)

    @property
    def by_hand(self) -> bool:
        """Whether a person has asked, and not a scheduler or the clock."""
        return self.received is signal.SIGINT

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Within: the first signal is remembered, a second Ctrl-C raises KeyboardInterrupt at once."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # torchrun follows the terminal's Ctrl-C with SIGTERM: that is the same request, not a second one.
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
