"""From what the ranks of all sites saw to findings about machines, data and what is inside a site. Pure arithmetic."""

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
    place,
    several_nodes,
    share,
    usual,
    without,
)
from isthmus.launch.preflight.versions import MAY_DIFFER
from isthmus.train.planner.accelerators import ACCELERATORS
from isthmus.units import format_bytes, format_duration

_HELD_UP = 0.6  # a rank that had less of its processor was held up by somebody; above, it is slow by itself
_FREE_MEMORY = 0.9  # of a GPU's: less, and another process has some
_FREE_RAM = 0.1
_SAVES_KEPT_SPARE = 1.1  # as training has it: of a save, so much must be free
_SAVE_SHARE = 0.1  # of checkpoint.deadline_seconds; a save that takes longer leaves little room for a slow day
# NCCL's large all-reduces move 75% of the bandwidth of NVLink (train/planner/calibration.py); half of it says that
# something else than NVLink carries them.
_RING_SHARE = 0.375
# A message of milliseconds is held up more easily than half a second of products.
_PAIR_MARGIN = 0.5


def judge_machines(
    sites: Sites, keys: PreflightConfig, *, keep: int, deadline_seconds: float, ranks_per_site: int
) -> list[Finding]:
    """Return findings about ranks, machines, disks, data and what is inside each site.

    Args:
        keep: checkpoints that stay.
        deadline_seconds: limit on one save.
    """
    return [
        *_present(sites, ranks_per_site),
        *_versions(sites),
        *_devices(sites),
        *_speed(sites, keys),
        *_open_files(sites),
        *_disks(sites, keep, deadline_seconds),
        *_data(sites),
        *_collectives(sites, keys),
        *_clocks(sites, keys),
    ]


def _present(sites: Sites, ranks_per_site: int) -> Iterator[Finding]:
    for site in sites.values():
        missing = [number for number in range(site["size"]) if str(number) not in site["ranks"]]
        refused = [look for look in site["ranks"].values() if "refused" in look]
        for look in refused:
            yield Finding(Status.fail, "ranks", place(site, look), look["refused"], "", look["node"])
        for number in missing:
            fix = "see that it runs and is not stopped or swapped out; its node is that of the ranks beside it"
            where = f"{site['name']}: rank {number}"
            yield Finding(Status.fail, "ranks", where, "it did not answer", fix)
        if site["size"] != ranks_per_site:
            told = f"{site['size']} ranks, and {ranks_per_site} here"
            yield Finding(Status.fail, "ranks", site["name"], told, "all sites need the same layout")
        elif not missing and not refused:
            nodes = len({look["node"] for look in site["ranks"].values()})
            yield Finding(Status.passed, "ranks", site["name"], f"{site['size']} on {nodes} node(s)")


def _versions(sites: Sites) -> Iterator[Finding]:
    looks = [(site, look) for site, look in everyone(sites) if "error" not in look["versions"]]
    yield from _errors(sites, "versions", "reinstall isthmus there")
    names = list(dict.fromkeys(name for _, look in looks for name in look["versions"]))
    worst = Status.passed
    for name in names:
        everywhere = [look["versions"].get(name) for _, look in looks]
        expected = usual(everywhere)
        told = set()
        for site, look in looks:
            found = look["versions"].get(name)
            # All ranks of a machine share its packages.
            if found == expected or (site["name"], look["node"]) in told:
                continue
            told.add((site["name"], look["node"]))
            status = Status.warn if name in MAY_DIFFER else Status.fail
            worst = Status.fail if Status.fail in (status, worst) else status
            fix = f"install the same {name} everywhere" if status is Status.fail else ""
            if accused := blamed(look, everywhere):
                fix = without(site, look, fix) if fix else ""
            where = place(site, look, rank=False)
            yield Finding(status, "versions", where, f"{name} {found}, elsewhere {expected}", fix, accused)
    if worst is not Status.fail and looks:
        first = looks[0][1]["versions"]
        shown = ", ".join(f"{name} {first.get(name)}" for name in ("isthmus", "torch", "megatron-core"))
        yield Finding(Status.passed, "versions", "everywhere", shown)


def _devices(sites: Sites) -> Iterator[Finding]:
    yield from _errors(sites, "device", "see that the driver works: nvidia-smi")
    for site in sites.values():
        looks = [look for one, look in everyone({"": site}) if "error" not in look["device"]]
        if not looks:
            continue
        usual_name = usual([look["device"]["name"] for look in looks])
        usual_memory = usual([look["device"]["memory_bytes"] for look in looks])
        bad = False
        for look in looks:
            device = look["device"]
            where, gpu = place(site, look), device["kind"] == "cuda"
            memory = f"{format_bytes(device['free_bytes'])} of {format_bytes(device['memory_bytes'])} free"
            if device["name"] != usual_name or (gpu and device["memory_bytes"] < 0.99 * usual_memory):
                told = f"{device['name']}, {format_bytes(device['memory_bytes'])}; elsewhere {usual_name}"
                fix = without(site, look, "give all ranks of a site the same device")
                yield Finding(Status.fail if gpu else Status.warn, "device", where, told, fix, look["node"])
                bad = True
            elif device["free_bytes"] < (_FREE_MEMORY if gpu else _FREE_RAM) * device["memory_bytes"]:
                fix = "end what else uses its memory: nvidia-smi" if gpu else "end what else uses its memory"
                yield Finding(Status.warn, "device", where, memory, fix, look["node"])
                bad = True
        if not bad:
            device = looks[0]["device"]
            unit = "GPU(s) a node" if device["kind"] == "cuda" else "core(s)"
            told = f"{device['name']}, {device['count']} {unit}, {format_bytes(device['memory_bytes'])} of memory"
            yield Finding(Status.passed, "device", site["name"], told)


def _speed(sites: Sites, keys: PreflightConfig) -> Iterator[Finding]:
    """A site's step takes as long as its slowest rank's: a rank at 75% takes a third more of everybody's time."""
    yield from _errors(sites, "matmul", "see that torch works there")
    for site in sites.values():
        looks = [look for _, look in everyone({"": site}) if "error" not in look["matmul"]]
        if not looks:
            continue
        middle = statistics.median_high(look["matmul"]["flops"] for look in looks)
        bad = False
        for look in looks:
            flops, peak = look["matmul"]["flops"], look["matmul"]["peak"]
            told = f"{_tflops(flops)}, {share(flops / middle)} of the site's median"
            if peak:
                told += f", {share(flops / peak)} of its data sheet"
            status = _below(flops / middle, keys.slow_rank)
            if peak and flops < keys.peak_share * peak:
                status = Status.fail
            if status is not Status.passed:
                bad = True
                yield Finding(status, "speed", place(site, look), told, _why_slow(site, look), look["node"])
        if not bad:
            flops = [look["matmul"]["flops"] for look in looks]
            yield Finding(Status.passed, "speed", site["name"], f"{_tflops(min(flops))} to {_tflops(max(flops))}")


def _why_slow(site: Site, look: Mapping[str, Any]) -> str:
    had = look["matmul"]["cpu_share"]
    if look["device"].get("kind") == "cpu" and had < _HELD_UP:
        fix = f"it had its processor {share(had)} of the time: look for another process, a CPU quota or a stopped rank"
    elif look["device"].get("kind") == "cpu":
        fix = "it had its processor all the time: look at clock rate, power saving and temperature"
    else:
        fix = "look at clocks, power limit and temperature: nvidia-smi -q -d PERFORMANCE,CLOCK"
    return without(site, look, fix)


def _open_files(sites: Sites) -> Iterator[Finding]:
    yield from _errors(sites, "files", "")
    for site in sites.values():
        looks = [look for _, look in everyone({"": site}) if "error" not in look["files"]]
        short = [look for look in looks if look["files"]["soft"] < look["files"]["needed"]]
        for look in short:
            files = look["files"]
            if files["hard"] >= files["needed"]:
                fix = f"ulimit -n {files['hard']} before the launch"
            else:
                fix = "raise LimitNOFILE (systemd, slurmd) or nofile in /etc/security/limits.conf"
            told = f"{files['soft']} may be open, {files['needed']} may be needed"
            yield Finding(Status.fail, "open files", place(site, look), told, fix, look["node"])
        if looks and not short:
            tightest = min(looks, key=lambda look: look["files"]["soft"] - look["files"]["needed"])["files"]
            told = f"{tightest['soft']} may be open, {tightest['needed']} may be needed"
            yield Finding(Status.passed, "open files", site["name"], told)


def _disks(sites: Sites, keep: int, deadline_seconds: float) -> Iterator[Finding]:
    for site in sites.values():
        looks = [look for _, look in everyone({"": site})]
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
        looks = [look for _, look in everyone({"": site})]
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
            for _, look in everyone({"": site})
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


def _below(part: float, limit: float) -> Status:
    """A share below the limit fails, below half-way from there to the whole it warns."""
    if part < limit:
        return Status.fail
    return Status.warn if part < (1 + limit) / 2 else Status.passed


def _errors(sites: Sites, probe: str, fix: str) -> Iterator[Finding]:
    check = {"matmul": "speed", "files": "open files"}.get(probe, probe)
    for site, look in everyone(sites):
        if "error" in look[probe]:
            yield Finding(Status.fail, check, place(site, look), look[probe]["error"], fix, look["node"])


def _tflops(flops: float) -> str:
    return f"{flops / 1e12:.3g} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.3g} GFLOP/s"
