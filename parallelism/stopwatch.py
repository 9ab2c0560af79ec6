"""Measures how long the device waits, on a CPU and on a GPU, without making it wait."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the time between the two ends of what it measures; on a GPU that of the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Within: time counts."""
        if not self._cuda:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return
        pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        pair[0].record()
        yield
        pair[1].record()
        self._pairs.append(pair)

    def take(self) -> float:
        """Return the seconds since the last call; on a GPU, those that are known by now."""
        while self._pairs and self._pairs[0][1].query():
            begin, end = self._pairs.pop(0)
            self._seconds += begin.elapsed_time(end) / 1000.0
        seconds, self._seconds = self._seconds, 0.0
        return seconds
