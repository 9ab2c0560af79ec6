"""Inside a site: do all ranks add up to the right numbers, how fast, and which rank holds the others up?"""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from isthmus.launch.preflight.observe import Clock
from isthmus.launch.probe.collectives import all_reduce_seconds, ring_rate

_LARGE = {"cpu": 4 << 20, "cuda": 256 << 20}  # bytes
_SMALL = 4 << 10
_PAIR = {"cpu": 2 << 20, "cuda": 64 << 20}
_ROUNDS = {"cpu": 7, "cuda": 12}
_CHECKED = 100_003  # numbers, no power of two: the last piece of a ring is a ragged one
_PERIOD = 1009
_CLOCK_ROUNDS = 5


def collectives(
    store: dist.Store, rank: int, size: int, units: list[int], *, device: str, clock: Clock, seconds: float
) -> dict[str, Any]:
    """Join a group of all ranks of the site, check and time it, and leave it.

    Args:
        units: of each rank, the number of its machine; of a site on one machine, 0, 1, 2, ... for each rank.
        seconds: after which a wait for another rank fails.
    """
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=seconds))
    try:
        wrong = wrong_sums(rank, size, device)
        large, small = (all_reduce_seconds(bytes_, device, _ROUNDS[device]) for bytes_ in (_LARGE[device], _SMALL))
        found = ring_rate(size, _LARGE[device], large, small)
        return found | {
            "wrong": wrong,
            "pairs": pairs(rank, units, device),
            "clock_offset_seconds": clock_offset(clock, device),
        }
    finally:
        dist.destroy_process_group()


def wrong_sums(rank: int, size: int, device: str) -> int:
    """Return how many numbers of an all-reduce and an all-gather are not exactly what they must be.

    The numbers are whole and their sums below 2^24, so that fp32 has no excuse, whatever the order of the additions.
    """
    base = (torch.arange(_CHECKED, device=device) % _PERIOD).float()
    values = base + rank
    dist.all_reduce(values)
    wrong = int((values != size * base + size * (size - 1) / 2).sum())
    gathered = torch.empty(size, _PERIOD, device=device)
    dist.all_gather(list(gathered), base[:_PERIOD] + rank)
    expected = base[:_PERIOD] + torch.arange(size, device=device, dtype=torch.float32)[:, None]
    return wrong + int((gathered != expected).sum())


def pairs(rank: int, units: list[int], device: str) -> list[dict[str, Any]]:
    """Exchange a message with a rank of the machine after, then of the machine before, and time both.

    A pair is as slow as its slower end, so a machine that is slow with both of its neighbours is the slow one; a ring
    of all would only say that somewhere is something.
    """
    found = []
    for turn in (0, 1):
        partner = partner_of(rank, units, turn)
        dist.barrier()
        if partner is None:
            continue
        values = torch.full((_PAIR[device] // 4,), float(rank), device=device)
        received = torch.empty_like(values)
        samples = []
        for _ in range(4):
            started = time.perf_counter()
            operations = [dist.P2POp(dist.isend, values, partner), dist.P2POp(dist.irecv, received, partner)]
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            if device == "cuda":
                torch.cuda.synchronize()
            samples.append(time.perf_counter() - started)
        found.append(
            {
                "partner": partner,
                "bytes_per_second": _PAIR[device] / min(samples[1:]),
                "wrong": int((received != float(partner)).sum()),
            }
        )
    return found


def partner_of(rank: int, units: list[int], turn: int) -> int | None:
    """Return the rank that stands where this one does in the neighbouring unit, or None if there is none.

    Units are paired (0, 1), (2, 3), ... in turn 0, and (1, 2), (3, 4), ..., (last, 0) in turn 1; of an odd number, one
    sits out a turn.
    """
    order = sorted(set(units))
    mine, count = order.index(units[rank]), len(order)
    if count < 2:
        return None
    other = (mine ^ 1) if turn == 0 else (((mine - 1) ^ 1) + 1) % count if mine else count - 1
    if other >= count or (turn == 1 and count % 2 and 0 in (mine, other)):
        return None
    here = [number for number, unit in enumerate(units) if unit == units[rank]]
    there = [number for number, unit in enumerate(units) if unit == order[other]]
    place = here.index(rank)
    # Machines of different sizes: whoever has no counterpart sits out.
    return there[place] if place < min(len(here), len(there)) else None


def clock_offset(clock: Clock, device: str) -> float:
    """Return by how many seconds this rank's clock is ahead of rank 0's, as well as a barrier can tell."""
    offsets = []
    for _ in range(_CLOCK_ROUNDS):
        dist.barrier()
        mine = torch.tensor([clock()], dtype=torch.float64, device=device)
        all_ = torch.empty(dist.get_world_size(), 1, dtype=torch.float64, device=device)
        dist.all_gather(list(all_), mine)
        offsets.append(float(mine[0] - all_[0, 0]))
    return min(offsets, key=abs)
