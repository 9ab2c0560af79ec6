"""From what the ranks of all sites saw to findings about what they share in a site: disk, data, network, time. Pure."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from isthmus.launch.preflight.config import PreflightConfig
from isthmus.launch.preflight.findings import (
    Finding,
    Site,
    Sites,
    Status,
    blamed,
    everyone,
    looks_of,
    place,
    several_nodes,
    usual,
    without,
)
from isthmus.train.planner.accelerators import ACCELERATORS
from isthmus.units import format_bytes, format_duration

_SAVES_KEPT_SPARE = 1.1  # as training has it: of a save, so much must be free
_SAVE_SHARE = 0.1  # of checkpoint.deadline_seconds; a save that takes longer leaves little room for a slow day
# NCCL's large all-reduces move 75% of the bandwidth of NVLink (train/planner/calibration.py); half of it says that
# something else than NVLink carries them.
_RING_SHARE = 0.375
# A message of milliseconds is held up more easily than half a second of products.
_PAIR_MARGIN = 0.5


def judge_sites(sites: Sites, keys: PreflightConfig, *, keep: int, deadline_seconds: float) -> list[Finding]:
    """Return findings about disks, data, collectives and clocks.

    Args:
        keep: checkpoints that stay.
        deadline_seconds: limit on one save.
    """
    return [
        *_disks(sites, keep, deadline_seconds),
        *_data(sites),
        *_collectives(sites, keys),
        *_clocks(sites, keys),
    ]


def _disks(sites: Sites, keep: int, deadline_seconds: float) -> Iterator[Finding]:
    for site in sites.values():
        looks = looks_of(site)
        broken = [look for look in looks if "error" in look["disk"]]
        for look in broken:
            disk = look["disk"]
            free = f" ({format_bytes(disk['free_bytes'])} free)" if "free_bytes" in disk else ""
            told = f"{disk.get('path', '')}: {disk['error']}{free}"
            fix = without(site, look, "mend or free it, or choose another run.dir")
            yield Finding(Status.fail, "disk", place(site, look), told, fix, look["node"])
        if broken or not looks:
            continue
        disk = min((look["disk"] for look in looks), key=lambda disk: disk["free_bytes"])
        save, free = disk["save_bytes"], disk["free_bytes"]
        rate = storage_rate(looks)
        seconds = save / rate
        told = (
            f"{disk['path']}: {format_bytes(free)} free, {format_bytes(rate)}/s; a save is {format_bytes(save)}, "
            f"{format_duration(seconds)}"
        )
        status, fix = Status.passed, ""
        if free < _SAVES_KEPT_SPARE * save:
            status, fix = Status.fail, "free space, or choose another run.dir"
        elif seconds > deadline_seconds:
            status, fix = Status.fail, "find a faster disk, or raise checkpoint.deadline_seconds"
        elif free < (keep + 1) * save:
            # The one that is being written lies beside those that stay.
            status, fix = Status.warn, f"free space: {keep} stay while the next is written, or lower checkpoint.keep"
        elif seconds > _SAVE_SHARE * deadline_seconds:
            status, fix = Status.warn, "find a faster disk: a save takes a tenth of checkpoint.deadline_seconds"
        yield Finding(status, "disk", site["name"], told, fix)
        if lone := [look for look in looks if look.get("shared") is False]:
            fix = "put run.dir on a file system that all nodes of the site see"
            for look in lone:
                told = "the run folder is not the one of rank 0"
                yield Finding(Status.fail, "disk", place(site, look, rank=False), told, fix, look["node"])


def storage_rate(looks: Sequence[Mapping[str, Any]]) -> float:
    """Return bytes per second of all ranks of a site that wrote at once."""
    return sum(look["disk"]["bytes_per_second"] for look in looks)


def _data(sites: Sites) -> Iterator[Finding]:
    looks = [(site, look) for site, look in everyone(sites) if "data" in look]
    bad = False
    for site, look in looks:
        if "error" in look["data"]:
            bad = True
            where = place(site, look, rank=False)
            yield Finding(Status.fail, "data", where, look["data"]["error"], "", look["node"])
    whole = [(site, look) for site, look in looks if "error" not in look["data"]]
    for name in dict.fromkeys(name for _, look in whole for name in look["data"]["sources"]):
        values = [look["data"]["sources"].get(name) for _, look in whole]
        expected = usual(values)
        for (site, look), found in zip(whole, values, strict=True):
            if found != expected:
                bad = True
                told = f"{name} is {found}, elsewhere {expected}"
                fix = "copy the data anew: it has another content here"
                where = place(site, look, rank=False)
                yield Finding(Status.fail, "data", where, told, fix, blamed(look, values))
    if whole and not bad:
        names = list(whole[0][1]["data"]["sources"])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        told = f"{', '.join(names[:4])}{more}: the same content on {len(whole)} node(s)"
        yield Finding(Status.passed, "data", "everywhere", told)


def _collectives(sites: Sites, keys: PreflightConfig) -> Iterator[Finding]:
    for site in sites.values():
        if site["size"] == 1:
            continue
        looks = looks_of(site)
        inside = [(look, look.get("inside") or {}) for look in looks]
        broken = [(look, seen) for look, seen in inside if "error" in seen]
        for look, seen in broken[:4]:
            fix = without(site, look, "see that ranks reach each other: NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME")
            yield Finding(Status.fail, "collectives", place(site, look), seen["error"].splitlines()[0], fix)
        whole = [(look, seen) for look, seen in inside if "bytes_per_second" in seen]
        if broken or not whole:
            if not broken:
                told = "not tried: a rank is missing"
                yield Finding(Status.warn, "collectives", site["name"], told, "mend that first")
            continue
        yield from _wrong_sums(site, whole)
        best = {
            look["rank"]: max((pair["bytes_per_second"] for pair in seen["pairs"]), default=None)
            for look, seen in whole
        }
        known = [rate for rate in best.values() if rate is not None]
        middle = statistics.median_high(known) if known else 0.0
        slow = False
        for look, _ in whole:
            rate = best[look["rank"]]
            if rate is not None and rate < _PAIR_MARGIN * keys.slow_rank * middle:
                slow = True
                told = f"{format_bytes(rate)}/s with its neighbours, others {format_bytes(middle)}/s"
                fix = without(site, look, "look at its network: cable, port speed, NCCL_DEBUG=INFO")
                yield Finding(Status.fail, "collectives", place(site, look), told, fix, look["node"])
        look, seen = whole[0]
        told = f"all-reduce {format_bytes(seen['bytes_per_second'])}/s, {seen['latency_seconds'] * 1e6:.0f} us a step"
        status, fix = Status.passed, ""
        if (link := _link_of(site, look)) and seen["bytes_per_second"] < _RING_SHARE * link:
            status, fix = Status.warn, "see that NVLink or InfiniBand carries it: NCCL_DEBUG=INFO"
        if status is Status.warn or not slow:
            yield Finding(status, "collectives", site["name"], told, fix)


def _wrong_sums(site: Site, whole: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterator[Finding]:
    wrong = [(look, seen) for look, seen in whole if seen["wrong"] or any(pair["wrong"] for pair in seen["pairs"])]
    for look, seen in wrong[:8]:
        partners = [str(pair["partner"]) for pair in seen["pairs"] if pair["wrong"]]
        told = f"{seen['wrong']} wrong sums" + (f", wrong values from rank {', '.join(partners)}" if partners else "")
        fix = without(site, look, "do not train on this hardware: test memory and network")
        yield Finding(Status.fail, "collectives", place(site, look), told, fix, look["node"])


def _link_of(site: Site, look: Mapping[str, Any]) -> float | None:
    """Return a GPU's bytes per second by its data sheet: inside a node, or out of it where there are several."""
    sheet = accelerator_of(look["device"].get("name", ""))
    if sheet == "cpu":
        return None
    found = ACCELERATORS[sheet]
    return found.network_bytes_per_second if several_nodes(site) else found.link_bytes_per_second


def accelerator_of(device_name: str) -> str:
    """Return the name of the data sheet that a device's name leads to."""
    return next((name for name in ACCELERATORS if name.upper() in device_name), "cpu")


def _clocks(sites: Sites, keys: PreflightConfig) -> Iterator[Finding]:
    for site in sites.values():
        ahead = [
            (look, look["inside"]["clock_offset_seconds"])
            for look in looks_of(site)
            if "clock_offset_seconds" in (look.get("inside") or {})
        ]
        if not ahead:
            continue
        middle = statistics.median_low(offset for _, offset in ahead)
        told_nodes = set()
        for look, offset in ahead:
            if (status := clock_status(offset - middle, keys)) is Status.passed or look["node"] in told_nodes:
                continue
            told_nodes.add(look["node"])
            told = f"{offset - middle:+.1f} s from the others"
            fix = without(site, look, "let it keep time: chronyc tracking, timedatectl")
            yield Finding(status, "clock", place(site, look, rank=False), told, fix, look["node"])
        if not told_nodes:
            largest = max(abs(offset - middle) for _, offset in ahead)
            yield Finding(Status.passed, "clock", site["name"], f"within {1e3 * largest:.0f} ms")


def clock_status(offset: float, keys: PreflightConfig) -> Status:
    """Logs are merged and heartbeats judged by the clock."""
    if abs(offset) > keys.clock_seconds:
        return Status.fail
    return Status.warn if abs(offset) > keys.clock_seconds / 10 else Status.passed
