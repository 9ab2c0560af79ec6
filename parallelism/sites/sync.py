"""What exact and local sync have in common: numbering, timing, counting, and the proof that sites agree."""

import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import UserError
from isthmus.parallelism.engine import Engine
from isthmus.parallelism.sites.agreement import StopAgreement
from isthmus.parallelism.sites.digest import digest
from isthmus.parallelism.sites.lane import Lane, peers_of, send_to_all
from isthmus.parallelism.slices import Slice

TAGS_PER_ROUND = 1 << 24
_STEP = struct.Struct("<Q")


class LaneUser:
    """Uses one lane: counts bytes and the seconds that training waited for other sites."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.rounds = 0
        self.transfer_seconds = 0.0  # from the start of each round to its end, waited for or not
        self._exposed_seconds = 0.0
        self._peers = peers_of(lane)
        self._counted = dict.fromkeys(self._peers, (0, 0))
        self._calls = 0
        self._stop = StopAgreement(lane)

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Within: training waits for other sites."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._exposed_seconds += time.perf_counter() - started

    def begin(self, step: int, engine: Engine) -> None:
        """Training starts after this step, in all sites alike.

        Raises:
            UserError: another site would start after another one.
        """
        steps = [int(_STEP.unpack(message)[0]) for message in self.broadcast(_STEP.pack(step))]
        if any(other != step for other in steps):
            listed = ", ".join(f"{name} after step {at}" for name, at in zip(self.lane.names, steps, strict=True))
            raise UserError(
                f"they would go on from different steps: {listed}", where="sites", fix="resume from one step"
            )
        self._stop.begin(step)

    def stop_after(self, engine: Engine, step: int, wanted: bool) -> bool:
        """Return whether all sites stop after this step; `wanted` is the same on all ranks of this site."""
        self.lane.pulse()
        # One lane is enough: two could come to different answers.
        stop = engine.any_rank(engine.rank == 0 and self._stop.stop_after(step, wanted))
        if stop:
            self.broadcast(b"")  # nobody leaves while something of its own is still on the way
        return stop

    def report(self, engine: Engine) -> dict[str, Any]:
        """Return what happened since the last report: bytes of all ranks of the site, the longest wait of one."""
        counted = self.lane.bytes_by_site()
        figures = [counted[peer][way] - self._counted[peer][way] for peer in self._peers for way in (0, 1)]
        self._counted = dict(counted)
        totals = engine.sum_over_ranks(torch.tensor(figures)).tolist()
        seconds = torch.tensor([self._exposed_seconds, self.transfer_seconds], dtype=torch.float64)
        exposed, transfer = engine.max_over_ranks(seconds).tolist()
        self._exposed_seconds = self.transfer_seconds = 0.0
        return {
            "wan_bytes_sent": sum(totals[0::2]),
            "wan_bytes_received": sum(totals[1::2]),
            "wan_exposed_seconds": exposed,
            "wan_transfer_seconds": transfer,
            "wan_links": {
                self.lane.names[peer]: {"bytes_sent": totals[2 * at], "bytes_received": totals[2 * at + 1]}
                for at, peer in enumerate(self._peers)
            },
            "round": self.rounds,
        }

    def broadcast(self, message: bytes) -> list[bytes]:
        """Send a short message to all sites and return those of all, this one's included, in the order of the sites."""
        self._calls += 1
        # Counted from the top, where no round's number comes.
        tag = (1 << 63) + self._calls
        with self.exposed():
            arrived = send_to_all(self.lane, tag, message).wait()
        return [message if site == self.lane.site else bytes(arrived[site]) for site in range(len(self.lane.names))]

    def compare(self, parts: Iterable[tuple[Slice, Tensor]], when: str, engine: Engine) -> None:
        """Prove that all sites hold the same bits, and so do the ranks of this one that hold copies.

        Raises:
            UserError: they do not; names the sites, the lane and when it was noticed.
        """
        if engine.copies_differ():
            raise UserError(
                f"copies of a parameter inside {self.lane.names[self.lane.site]} differ {when}",
                where="parallel",
                fix="a bit has flipped or a rank computes wrongly: stop all, resume from a verified checkpoint",
            )
        digests = self.broadcast(digest(parts))
        differing = [number for number, other in enumerate(digests) if other != digests[self.lane.site]]
        # One lane sees it, all ranks must say it: the others would only notice that this one is gone.
        seen = torch.tensor([engine.rank + 1 if differing else 0, sum(1 << number for number in differing)])
        lane, sites = (int(value) for value in engine.max_over_ranks(seen).tolist())
        if lane:
            others = ", ".join(name for number, name in enumerate(self.lane.names) if sites >> number & 1)
            raise UserError(
                f"the parameters differ between {self.lane.names[self.lane.site]} and {others} {when}",
                where=f"lane {lane - 1}",
                fix="a bit has flipped or sites run different code: stop all, resume from a verified checkpoint",
            )
