"""Two sites over shaped links: what is measured is what the lab was told, and each planted fault is found."""

from pathlib import Path
from typing import Any

import pytest
from support.preflight import QUICK, cluster_rank, failed, site_rank, the
from support.ranks import free_port, run_sites
from support.wan import sites_over_links

from isthmus.config import compose
from isthmus.launch.lab.links import Links, Shape
from isthmus.train.planner.config import PlanRunConfig
from isthmus.train.planner.predict import predict
from isthmus.train.planner.resolve import cluster_of, layout_of, shape_of_config, sync_of

TCP_SHARE = 1448 / 1500  # payload of an IP packet
NAMES = ["site0", "site1"]
OTHER_TEXT = "The same name, and other words. " * 200


def words(tmp_path: Path, cache: Path) -> list[str]:
    return [*QUICK, "sync=local", f"data.cache_dir={cache}", f"run.dir={tmp_path}/runs", "run.name=looked-at"]


def look(
    tmp_path: Path,
    cache: Path,
    links: Links,
    faults: list[list[str]] | None = None,
    by_site: list[list[str]] | None = None,
) -> list[dict[str, Any]]:
    none: list[list[str]] = [[], []]
    arguments = words(tmp_path, cache), by_site or none, faults or none
    with sites_over_links(site_rank, *arguments, links=links) as sites:
        return [sites.hear(site, 150) for site in (0, 1)]


@pytest.mark.slow
def test_a_sound_link_passes_and_is_measured_right(tmp_path: Path, shared_cache: Path) -> None:
    results = look(tmp_path, shared_cache, Links.uniform(NAMES, Shape(bandwidth_mbps=40, rtt_ms=20)))
    # Both print the same table.
    assert results[0]["findings"] == results[1]["findings"]
    result = results[0]
    assert (result["code"], failed(result)) == (0, [])
    assert the(result, "lane ports", "site0 > site1")["measured"] == "1 of 1 ports open"
    (link,) = result["links"]
    assert link["between"] == NAMES
    assert 20 <= link["rtt_ms"] < 200  # a busy machine answers late, never early
    for way in link["directions"]:
        assert max(way["mbps"].values()) == pytest.approx(40 * TCP_SHARE, rel=0.3)
        assert set(way["mbps"]) == {"1", "2"}
        assert way["loss"] < 0.002
    # The plan reads it, and comes to the payload that was measured.
    for site, result in zip(NAMES, results, strict=True):
        assert result["files"]["cluster"].endswith(f"{site}/cluster.yaml")
        overrides = ["model=nano", "sync=local", "train.precision=fp32", "train.sequence_length=128"]
        config = compose(PlanRunConfig, "plan", [*overrides, f"cluster={result['files']['cluster']}"])
        cluster = cluster_of(config.cluster)
        measured = min(max(way["mbps"].values()) for way in link["directions"])
        read = cluster.link("site0", "site1")
        assert read is not None
        assert read.bytes_per_second * 8 / 1e6 * 0.95 == pytest.approx(measured, rel=0.001)
        assert read.rtt_seconds * 1e3 == pytest.approx(link["rtt_ms"], rel=0.001)
        prediction = predict(shape_of_config(config), layout_of(config, cluster), cluster, sync_of(config.sync))
        assert prediction.step_seconds > 0


@pytest.mark.slow
def test_sites_of_several_machines_fill_the_link_together(tmp_path: Path, shared_cache: Path) -> None:
    """Over loopback, without privileges: no rate to hold it against but its own parts."""
    # How fast loopback is each way on a busy machine says nothing.
    lax = ["preflight.asymmetry=1000", "preflight.slow_rank=0.02", "preflight.link_seconds=0.2"]
    more = [*words(tmp_path, shared_cache), *lax]
    results = run_sites(cluster_rank, 2, 2, [free_port(), free_port()], more)
    result = results[0][0]
    assert (result["code"], failed(result)) == (0, [])
    assert result["findings"] == results[1][0]["findings"]
    assert the(result, "lane ports", "site0 > site1")["measured"] == "2 of 2 ports open"
    (link,) = result["links"]
    for way, name in zip(link["directions"], ("out", "in"), strict=True):
        lanes = [result["sites"]["site0"]["ranks"][number]["abroad"]["links"]["site1"] for number in ("0", "1")]
        assert way["together_mbps"] == pytest.approx(sum(lane["together"][name] for lane in lanes))
        assert min(lane["together"][name] for lane in lanes) > 0
    assert "all machines" in the(result, "bandwidth", "site0 > site1")["measured"]
    assert {check["check"] for check in result["findings"]} >= {"collectives", "clock", "meeting", "loss", "round trip"}


@pytest.mark.slow
def test_asymmetry_loss_and_a_wrong_clock_are_found_where_they_are(tmp_path: Path, shared_cache: Path) -> None:
    links = Links.uniform(NAMES, Shape(bandwidth_mbps=40, rtt_ms=20))
    links.shapes[1, 0] = Shape(bandwidth_mbps=8, rtt_ms=20)
    links.shapes[0, 1] = Shape(bandwidth_mbps=40, rtt_ms=20, loss=0.03)
    result, _ = look(tmp_path, shared_cache, links, faults=[[], ["clock"]])
    assert result["code"] == 90
    assert sorted(failed(result)) == [
        ("asymmetry", "site1 > site0"),
        ("clock", "site0 - site1"),
        ("loss", "site0 > site1"),
    ]
    (link,) = result["links"]
    assert link["clock_ahead_seconds"] == pytest.approx(30, abs=0.5)
    out, back = link["directions"]
    assert out["loss"] == pytest.approx(0.03, abs=0.02)  # 1000 packets: a standard deviation is 0.0054
    assert back["loss"] < 0.005
    assert max(back["mbps"].values()) == pytest.approx(8 * TCP_SHARE, rel=0.3)


@pytest.mark.slow
def test_a_firewall_other_data_and_another_configuration_are_found(tmp_path: Path, shared_cache: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "one/text.txt").write_text(OTHER_TEXT.replace("other", "equal"))
    (tmp_path / "other/text.txt").write_text(OTHER_TEXT)
    own = []
    for folder, rate in (("one", "0.001"), ("other", "0.002")):
        mix = tmp_path / f"{folder}.yaml"
        mix.write_text(f"sources: {{pages: {{path: {tmp_path}/{folder}/text.txt}}}}\nvocab_size: 300\n")
        own.append([f"data={mix}", f"optim.learning_rate={rate}"])
    links = Links.uniform(NAMES, Shape(bandwidth_mbps=40, rtt_ms=5))
    results = look(tmp_path, shared_cache, links, faults=[[], ["deaf"]], by_site=own)
    for result in results:
        assert result["code"] == 90
        found = [check for check, _ in failed(result)]
        assert sorted(set(found)) == ["configuration", "data", "lane ports"]
    closed = the(results[0], "lane ports", "site0 > site1, rank 0")
    assert "no answer at all: a firewall" in closed["measured"]
    assert "name site1 before site0 in sites.names: the way back" in closed["fix"]
    (configured,) = (found for found in results[0]["findings"] if found["check"] == "configuration")
    assert "optim.learning_rate (0.001 here, 0.002 there)" in configured["measured"]


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_is_told_in_both_sites(tmp_path: Path, shared_cache: Path) -> None:
    links = Links.uniform(NAMES, Shape(bandwidth_mbps=40, rtt_ms=5))
    short = "preflight.wait_seconds=8"
    own = [[short], [short, "sites.store=10.77.0.1:29411"]]  # later words win; nobody listens there
    host, guest = look(tmp_path, shared_cache, links, by_site=own)
    assert failed(host) == [("meeting", "site1")]
    assert ("meeting", "site1: machine1") in failed(guest)
    assert "refused: nobody listens there" in the(guest, "meeting", "site1: machine1")["measured"]
    assert the(guest, "data", "everywhere")["status"] == "pass"  # what can be known alone is told all the same
