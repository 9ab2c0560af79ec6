"""From what ranks saw to findings: pure, on observations made by hand."""

import copy
from typing import Any

import pytest
import yaml

from isthmus.launch.preflight.between import filling_lanes, turns
from isthmus.launch.preflight.cluster_file import cluster_yaml
from isthmus.launch.preflight.config import PreflightConfig
from isthmus.launch.preflight.findings import Finding, Status
from isthmus.launch.preflight.inside import partner_of
from isthmus.launch.preflight.judge_links import Direction, MeasuredLink, judge_links, measured_links
from isthmus.launch.preflight.judge_ranks import judge_ranks
from isthmus.launch.preflight.judge_sites import judge_sites
from isthmus.launch.preflight.link import settled_mbps, stream_counts

H100 = "NVIDIA H100 80GB HBM3"


def rank(number: int, node: str, *, gpu: bool = False) -> dict[str, Any]:
    inside = {"bytes_per_second": 3e11, "latency_seconds": 1e-5, "wrong": 0, "clock_offset_seconds": 0.0}
    return {
        "rank": number,
        "node": node,
        "versions": {"isthmus": "0.1.0", "torch": "2.13.0", "kernel": "6.1", "megatron-core": "0.16.1"},
        "device": {
            "kind": "cuda" if gpu else "cpu",
            "name": H100 if gpu else "a CPU",
            "count": 8,
            "memory_bytes": 80e9,
            "free_bytes": 79e9,
        },
        "files": {"soft": 1024, "hard": 4096, "needed": 500},
        "matmul": {"flops": 7e14, "cpu_share": 1.0, "peak": 9.9e14 if gpu else None},
        "disk": {"path": "runs", "save_bytes": 1e9, "free_bytes": 1e12, "bytes_per_second": 1e9},
        "data": {"sources": {"pages": "abc"}},
        "network": {"controls": ["bbr"], "largest_buffer": 6 << 20},
        "inside": inside | {"pairs": [{"partner": 0, "bytes_per_second": 1e10, "wrong": 0}]},
    }


def site(nodes: int = 4, *, gpu: bool = False, name: str = "main") -> dict[str, Any]:
    ranks = {str(number): rank(number, f"node{number}", gpu=gpu) for number in range(nodes)}
    return {"name": name, "size": nodes, "ranks": ranks}


def judge(sites: dict[str, Any], **keys: Any) -> list[Finding]:
    return [finding for finding in all_findings(sites, **keys) if finding.status is not Status.passed]


def all_findings(sites: dict[str, Any], **keys: Any) -> list[Finding]:
    size = next(iter(sites.values()))["size"]
    limits = PreflightConfig(**keys)
    return [*judge_ranks(sites, limits, size), *judge_sites(sites, limits, keep=2, deadline_seconds=1800)]


@pytest.mark.parametrize("gpu", [False, True])
def test_sound_machines_pass_every_check(gpu: bool) -> None:
    sites = {"main": site(gpu=gpu)}
    assert judge(sites) == []
    assert {finding.check for finding in all_findings(sites)} == {
        "ranks", "versions", "device", "speed", "open files", "disk", "data", "collectives", "clock",
    }  # fmt: skip


FAULTS: dict[str, tuple[list[str], Any, Status, str, str]] = {
    # path into rank 2's observations, value, verdict, check, words of the line
    "half as fast": (["matmul", "flops"], 3.5e14, Status.fail, "speed", "50% of the site's median"),
    "a little slower": (["matmul", "flops"], 5.9e14, Status.warn, "speed", "84.3% of the site's median"),
    "another torch": (["versions", "torch"], "2.12.0", Status.fail, "versions", "torch 2.12.0, elsewhere 2.13.0"),
    "another kernel": (["versions", "kernel"], "6.2", Status.warn, "versions", "kernel 6.2, elsewhere 6.1"),
    "another GPU": (["device", "name"], "NVIDIA A100", Status.fail, "device", "elsewhere NVIDIA H100"),
    "memory taken": (["device", "free_bytes"], 40e9, Status.warn, "device", "40 GB of 80 GB free"),
    "too few files": (["files", "soft"], 400, Status.fail, "open files", "400 may be open, 500 may be needed"),
    "other data": (["data", "sources", "pages"], "xyz", Status.fail, "data", "pages is xyz, elsewhere abc"),
    "a lone folder": (["shared"], False, Status.fail, "disk", "not the one of rank 0"),
    "a broken disk": (["disk", "error"], "Input/output error", Status.fail, "disk", "Input/output error"),
    "a late clock": (["inside", "clock_offset_seconds"], -30.0, Status.fail, "clock", "-30.0 s from the others"),
    "wrong sums": (["inside", "wrong"], 3, Status.fail, "collectives", "3 wrong sums"),
    "a slow network": (
        ["inside", "pairs"],
        [{"partner": 3, "bytes_per_second": 1e9, "wrong": 0}, {"partner": 1, "bytes_per_second": 2e9, "wrong": 0}],
        Status.fail,
        "collectives",
        "2 GB/s with its neighbours, others 10 GB/s",
    ),
    "a probe that broke": (["matmul", "error"], "OutOfMemoryError: x", Status.fail, "speed", "OutOfMemoryError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_node_is_one_line_that_names_it(fault: str) -> None:
    path, value, status, check, words = FAULTS[fault]
    main = site(gpu=True)
    *parents, last = path
    place = main["ranks"]["2"]
    for name in parents:
        place = place[name]
    place[last] = value
    (found,) = judge({"main": main})
    assert (found.status, found.check, found.node) == (status, check, "node2")
    assert words in found.measured
    assert "node2" in found.where
    if status is Status.fail and fault not in ("other data", "a lone folder", "too few files", "a probe that broke"):
        assert "launch.exclude=[node2]" in found.fix


def test_a_pair_that_is_slow_accuses_only_the_end_that_is_slow_with_others_too() -> None:
    main = site()
    for number, rates in {0: (1e9, 1e10), 1: (1e9, 1e9), 2: (1e10, 1e9), 3: (1e10, 1e10)}.items():
        main["ranks"][str(number)]["inside"]["pairs"] = [
            {"partner": 9, "bytes_per_second": rate, "wrong": 0} for rate in rates
        ]
    assert [found.node for found in judge({"main": main})] == ["node1"]


def test_a_gpu_is_held_against_its_data_sheet_and_its_links() -> None:
    main = site(gpu=True)
    for look in main["ranks"].values():
        look["matmul"]["flops"] = 4e14
        look["inside"]["bytes_per_second"] = 5e9
    found = judge({"main": main})
    assert [finding.check for finding in found] == ["speed"] * 4 + ["collectives"]
    assert "40.4% of its data sheet" in found[0].measured
    assert "NVLink or InfiniBand" in found[-1].fix


@pytest.mark.parametrize(
    ("free", "rate", "status", "words"),
    [
        (1.05e9, 1e9, Status.fail, "free space"),
        (2.5e9, 1e9, Status.warn, "2 stay while the next is written"),
        (1e12, 1e5, Status.fail, "checkpoint.deadline_seconds"),
        (1e12, 1e6, Status.warn, "a tenth of checkpoint.deadline_seconds"),
    ],
)
def test_a_disk_must_hold_the_saves_and_take_them_in_time(free: float, rate: float, status: Status, words: str) -> None:
    main = site()
    for look in main["ranks"].values():
        look["disk"] |= {"free_bytes": free, "bytes_per_second": rate}
    (found,) = judge({"main": main})
    assert (found.check, found.status) == ("disk", status)
    assert words in found.fix


def test_missing_and_refusing_ranks_are_named() -> None:
    main = site()
    del main["ranks"]["3"]
    main["ranks"]["1"] = {"rank": 1, "node": "node1", "refused": "there is no CUDA device here"}
    for look in main["ranks"].values():
        look.pop("inside", None)
    found = judge({"main": main})
    assert [(finding.check, finding.where) for finding in found] == [
        ("ranks", "main: node1, rank 1"),
        ("ranks", "main: rank 3"),
        ("collectives", "main"),
    ]


def direction(rate: float = 100.0, **more: Any) -> Direction:
    found: dict[str, Any] = {"loss": 0.0, "jitter_seconds": 0.001, "repeated": 0.0}
    return Direction(**(found | {"mbps": {1: rate, 2: rate, 4: rate}} | more))


def link_findings(out: Direction, back: Direction, *, rtt: float = 0.05, **keys: Any) -> list[Finding]:
    sites = {name: site(1, name=name) for name in ("a", "b")}
    link = MeasuredLink(("a", "b"), rtt, 0.0, out, back)
    found = judge_links(sites, [link], PreflightConfig(**keys), names=["a", "b"], streams=4)
    return [finding for finding in found if finding.status is not Status.passed]


def test_a_sound_link_passes() -> None:
    assert link_findings(direction(), direction(80.0)) == []


LINKS: dict[str, tuple[dict[str, Any], Status, str, str]] = {
    "asymmetric": ({"rate": 30.0}, Status.fail, "asymmetry", "b > a"),
    "somewhat": ({"rate": 60.0}, Status.warn, "asymmetry", "b > a"),
    "lossy": ({"loss": 0.03}, Status.fail, "loss", "b > a"),
    "a little lossy": ({"loss": 0.003}, Status.warn, "loss", "b > a"),
    "late packets": ({"jitter_seconds": 0.04}, Status.warn, "jitter", "b > a"),
    "more streams": ({"mbps": {1: 25.0, 2: 50.0, 4: 100.0}}, Status.warn, "bandwidth", "b > a"),
}


@pytest.mark.parametrize("case", LINKS)
def test_a_fault_of_one_direction_is_told_of_that_one(case: str) -> None:
    more, status, check, where = LINKS[case]
    (found,) = link_findings(direction(), direction(**more))
    assert (found.status, found.check, found.where) == (status, check, where)
    assert found.fix


def test_a_link_below_what_is_asked_for_fails_both_ways() -> None:
    found = link_findings(direction(), direction(), link_mbps=500.0)
    assert [(finding.status, finding.where) for finding in found] == [(Status.fail, "a > b"), (Status.fail, "b > a")]


def test_small_buffers_and_an_old_congestion_control_are_told() -> None:
    found = link_findings(direction(8000.0), direction(8000.0), rtt=0.1)
    assert {finding.check for finding in found} == {"kernel"}
    assert "tcp_rmem" in found[0].fix


def test_blocked_datagrams_alone_are_no_fault() -> None:
    assert link_findings(direction(loss=None, jitter_seconds=None), direction()) == []


def test_both_ends_of_a_link_tell_the_same_link() -> None:
    def seen(out: float, back: float, ahead: float) -> dict[str, Any]:
        ways = [{"mbps": {"1": rate}, "loss": 0.0, "jitter_seconds": 0.0, "repeated": 0.0} for rate in (out, back)]
        return {"link": {"rtt_seconds": 0.02, "clock_ahead_seconds": ahead, "out": ways[0], "in": ways[1]}}

    first, second = (site(1, name=name) for name in ("z", "a"))
    first["ranks"]["0"]["abroad"] = {"links": {"a": seen(10, 20, 3)}}
    second["ranks"]["0"]["abroad"] = {"links": {"z": seen(20, 10, -3)}}
    both = {"z": first, "a": second}
    only_second = copy.deepcopy(both)
    del only_second["z"]["ranks"]["0"]["abroad"]
    assert measured_links(both) == measured_links(only_second)
    together = {"out": 30.0, "in": 40.0}
    for number in ("0", "1"):
        links = first["ranks"].setdefault(number, rank(1, "node1")).setdefault("abroad", {"links": {"a": {}}})["links"]
        links["a"]["together"] = together
    (link,) = measured_links(both)
    assert (link.out.together_mbps, link.back.best_mbps) == (60.0, 80.0)
    assert (link.ends, link.out.mbps, link.back.mbps, link.clock_ahead_seconds) == (("z", "a"), {1: 10}, {1: 20}, 3)


def test_the_cluster_file_holds_what_the_plan_can_use() -> None:
    sites = {name: site(2, gpu=True, name=name) for name in ("a", "b")}
    sites["b"]["ranks"]["1"]["matmul"]["flops"] = 3.5e14
    link = MeasuredLink(("a", "b"), 0.036, 0.0, direction(950.0), direction(1900.0))
    content = yaml.safe_load(cluster_yaml(sites, [link]))
    assert content["links"] == [{"between": ["a", "b"], "bandwidth_gbps": 1.0, "rtt_ms": 36.0}]
    expected = {"accelerator": "h100", "count": 2, "node_size": 1, "memory_gb": 80.0, "slowdown": 1.0}
    assert content["sites"]["b"] == expected | {"storage_gigabytes": 2.0}


@pytest.mark.parametrize("count", range(2, 9))
def test_every_pair_of_sites_has_one_turn_and_no_site_two_at_once(count: int) -> None:
    names = [f"site{number}" for number in range(count)]
    found = turns(names)
    pairs = [pair for turn in found for pair in turn]
    assert sorted(pairs) == [(a, b) for number, a in enumerate(names) for b in names[number + 1 :]]
    assert len(found) == count - 1 + count % 2
    assert all(len({name for pair in turn for name in pair}) == 2 * len(turn) for turn in found)


@pytest.mark.parametrize(
    ("ranks", "ranks_per_node", "expected"),
    [((8, 8), (8, 8), []), ((16, 16), (8, 8), [0, 8]), ((16, 16), (4, 8), [0, 8]), ((2, 4), (1, 1), [0, 1])],
)
def test_one_rank_of_each_machine_fills_a_link(
    ranks: tuple[int, int], ranks_per_node: tuple[int, int], expected: list[int]
) -> None:
    both = [{"ranks": a, "ranks_per_node": b} for a, b in zip(ranks, ranks_per_node, strict=True)]
    assert filling_lanes(both) == expected


@pytest.mark.parametrize("nodes", range(2, 8))
@pytest.mark.parametrize("each", [1, 3])
def test_partners_name_each_other_and_every_node_has_two_neighbours(nodes: int, each: int) -> None:
    units = [number // each for number in range(nodes * each)]
    for number in range(nodes * each):
        partners = [partner_of(number, units, turn) for turn in (0, 1)]
        for turn, partner in enumerate(partners):
            assert partner is None or partner_of(partner, units, turn) == number
            assert partner is None or (partner % each == number % each and units[partner] != units[number])
        met = [partner for partner in partners if partner is not None]
        assert met, "nobody sits out both turns"
        assert len(set(met)) == len(met) or nodes == 2
    sitting_out = [sum(partner_of(n, units, turn) is None for n in range(nodes * each)) for turn in (0, 1)]
    assert sitting_out == ([each, each] if nodes % 2 else [0, 0])


def test_machines_of_different_sizes_have_no_partner_for_the_surplus() -> None:
    units = [0, 0, 1]
    assert [partner_of(number, units, 0) for number in range(3)] == [2, None, 0]


def test_streams_double_up_to_the_number_itself() -> None:
    assert [stream_counts(count) for count in (1, 2, 3, 4, 6)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 6]]


def test_no_machine_is_blamed_where_two_halves_differ() -> None:
    main = site(2)
    main["ranks"]["1"]["versions"]["torch"] = "2.12.0"
    (found,) = judge({"main": main})
    assert (found.status, found.node) == (Status.fail, None)
    assert "launch.exclude" not in found.fix


def test_what_comes_late_and_all_at_once_does_not_make_a_link_faster() -> None:
    """A steady 10 Mbit/s, of which from 0.6 to 0.9 s hardly any is handed on: from the middle on it looks like 12."""
    arrivals = [(step / 100, 12_500 * (step if not 60 < step < 90 else 60) + step) for step in range(1, 151)]
    assert settled_mbps(arrivals, 1.5) == pytest.approx(10.0, rel=0.1)


def test_a_slow_start_is_forgotten() -> None:
    arrivals = [(0.0, 0), (0.5, 1_000)] + [(0.5 + 0.1 * step, 1_000 + step * 125_000) for step in range(11)]
    assert settled_mbps(arrivals, 1.5) == pytest.approx(10.0)
    assert settled_mbps(arrivals[:1], 1.5) == 0.0
