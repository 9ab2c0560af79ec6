"""From what the ranks of all sites saw to findings about each rank and its machine. Pure arithmetic."""

import statistics
from collections.abc import Iterator, Mapping
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
    share,
    usual,
    without,
)
from isthmus.launch.preflight.versions import MAY_DIFFER
from isthmus.units import format_bytes

_HELD_UP = 0.6  # a rank that had less of its processor was held up by somebody; above, it is slow by itself
_FREE_MEMORY = 0.9  # of a GPU's: less, and another process has some
_FREE_RAM = 0.1


def judge_ranks(sites: Sites, keys: PreflightConfig, ranks_per_site: int) -> list[Finding]:
    """Return findings about each rank and its machine."""
    return [
        *_present(sites, ranks_per_site),
        *_versions(sites),
        *_devices(sites),
        *_speed(sites, keys),
        *_open_files(sites),
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
        looks = [look for look in looks_of(site) if "error" not in look["device"]]
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
        looks = [look for look in looks_of(site) if "error" not in look["matmul"]]
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
        looks = [look for look in looks_of(site) if "error" not in look["files"]]
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
