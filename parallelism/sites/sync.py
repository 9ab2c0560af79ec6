"""What exact and local sync have in common: numbering, timing, counting, and the proof that sites agree."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from isthmus.errors import UserError
from isthmus.parallelism.engine import Engine
from isthmus.parallelism.sites.digest import digest
from isthmus.parallelism.sites.lane import Lane
from isthmus.parallelism.slices import Slice

TAGS_PER_ROUND = 1 << 24


class LaneUser:
    """Uses one lane: counts bytes and the seconds that training waited for other sites."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.rounds = 0
        self._exposed_seconds = 0.0
        self._counted = (0, 0)
        self._calls = 0

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Within: training waits for other sites."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._exposed_seconds += time.perf_counter() - started

    def report(self, engine: Engine) -> dict[str, float]:
        """Return what happened since the last report: bytes of all ranks of the site, the longest wait of one."""
        sent, received = self.lane.bytes_sent, self.lane.bytes_received
        figures = [sent - self._counted[0], received - self._counted[1]]
        self._counted = (sent, received)
        bytes_sent, bytes_received = engine.sum_over_ranks(torch.tensor(figures, dtype=torch.float64)).tolist()
        exposed, self._exposed_seconds = engine.max_over_ranks(self._exposed_seconds), 0.0
        return {
            "wan_bytes_sent": bytes_sent,
            "wan_bytes_received": bytes_received,
            "wan_exposed_seconds": exposed,
            "round": self.rounds,
        }

    def broadcast(self, message: bytes) -> list[bytes]:
        """Send a short message to all sites and return those of all, this one's included, in the order of the sites."""
        self._calls += 1
        # Counted from the top, where no round's number comes.
        tag = (1 << 63) + self._calls
        peers = [site for site in range(len(self.lane.names)) if site != self.lane.site]
        with self.exposed():
            arrived = self.lane.exchange(tag, dict.fromkeys(peers, message)).wait()
        return [message if site == self.lane.site else bytes(arrived[site]) for site in range(len(self.lane.names))]

    def compare(self, parts: Iterable[tuple[Slice, Tensor]], when: str, rank: int) -> None:
        """Prove that all sites hold the same bits.

        Raises:
            UserError: they do not; names the sites, the lane and when it was noticed.
        """
        digests = self.broadcast(digest(parts))
        ours = digests[self.lane.site]
        others = [name for name, other in zip(self.lane.names, digests, strict=True) if other != ours]
        if others:
            raise UserError(
                f"the parameters differ between {self.lane.names[self.lane.site]} and {', '.join(others)} {when}",
                where=f"lane {rank}",
                fix="a bit has flipped or sites run different code: stop all, resume from a verified checkpoint",
            )
