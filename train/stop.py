"""Stop requests by signal: the first asks, the second insists."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Set by SIGINT (Ctrl-C) or SIGTERM; the loop looks at it between steps."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interrupts = 0

    def __call__(self) -> bool:
        return self.received is not None

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
