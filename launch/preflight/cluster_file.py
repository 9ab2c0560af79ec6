"""The cluster file that `isthmus plan` reads (cluster=FILE), from what a preflight has measured."""

import statistics
from collections.abc import Sequence
from typing import Any

import yaml

from isthmus.launch.preflight.findings import Site, Sites, looks_of
from isthmus.launch.preflight.judge_links import MeasuredLink
from isthmus.launch.preflight.judge_sites import accelerator_of, storage_rate
from isthmus.train.planner.accelerators import ACCELERATORS
from isthmus.train.planner.constants import constants_of

_HEADER = """\
# What `isthmus launch preflight` measured: isthmus plan cluster=THIS_FILE
# bandwidth_gbps is that of the slower direction, so that the plan, which takes {efficiency:.0%} of it for payload,
# comes to the payload that was measured. What stands for nothing here comes from the data sheet.
"""


def cluster_yaml(sites: Sites, links: Sequence[MeasuredLink]) -> str:
    """Return the file's text: sites with their ranks, memory, storage and stragglers, and the links among them."""
    described = {name: _site(site) for name, site in sites.items() if looks_of(site)}
    efficiency = min(
        (constants_of(ACCELERATORS[entry["accelerator"]]).wan_efficiency for entry in described.values()), default=1.0
    )
    between = [
        {
            "between": list(link.ends),
            "bandwidth_gbps": _rounded(min(link.out.best_mbps, link.back.best_mbps) / 1e3 / efficiency),
            "rtt_ms": _rounded(1e3 * link.rtt_seconds),
        }
        for link in links
        if min(link.out.best_mbps, link.back.best_mbps) > 0 and set(link.ends) <= set(described)
    ]
    content: dict[str, Any] = {"sites": described}
    if between:
        content["links"] = between
    return _HEADER.format(efficiency=efficiency) + yaml.safe_dump(content, sort_keys=False)


def _site(site: Site) -> dict[str, Any]:
    looks = looks_of(site)
    found: dict[str, Any] = {"accelerator": "cpu", "count": site["size"]}
    devices = [look["device"] for look in looks if "error" not in look["device"]]
    if devices:
        gpu = devices[0]["kind"] == "cuda"
        found["accelerator"] = accelerator_of(devices[0]["name"]) if gpu else "cpu"
        nodes = [look["node"] for look in looks]
        found["node_size"] = max(nodes.count(node) for node in nodes)
        memory = min(device["memory_bytes"] for device in devices)
        found["memory_gb"] = _rounded(memory / 1e9 / (1 if gpu else found["node_size"]))
    speeds = [look["matmul"]["flops"] for look in looks if "error" not in look["matmul"]]
    if speeds:
        middle = statistics.median_high(speeds)
        if found["accelerator"] == "cpu":
            found["peak_tflops"] = _rounded(middle / 1e12)  # no data sheet knows a share of a processor
        found["slowdown"] = _rounded(middle / min(speeds) - 1)
    if looks and all("bytes_per_second" in look["disk"] for look in looks):
        found["storage_gigabytes"] = _rounded(storage_rate(looks) / 1e9)
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
