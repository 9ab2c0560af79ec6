"""What the links cost, against arithmetic and against the wire codecs themselves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import UserError
from isthmus.parallelism.sites.config import Wire
from isthmus.train.planner.accelerators import H100
from isthmus.train.planner.cluster import Cluster, Link, Site
from isthmus.train.planner.crossing import (
    crossing,
    exact_exposed,
    idealised_utilisation,
    local_exposed,
    needed_bytes_per_second,
    payload_bytes,
)
from isthmus.train.planner.layout import Sync


def _cluster(count: int, links: list[tuple[int, int, float]]) -> Cluster:
    return Cluster(
        sites=[Site(name=f"s{i}", accelerator=H100, count=8) for i in range(count)],
        links=[Link(ends=(f"s{a}", f"s{b}"), bytes_per_second=speed, rtt_seconds=0.0) for a, b, speed in links],
    )


@pytest.mark.parametrize("wire", list(Wire))
def test_bits_are_those_of_the_codecs(wire: Wire) -> None:
    from isthmus.parallelism.sites.wire import codec_for

    codec = codec_for(wire, 0.02)
    numbers = 4096 * 100
    expected = codec.payload_bytes(numbers // codec.block)
    assert payload_bytes(numbers, Sync(kind="exact", wire=wire.name)) == pytest.approx(expected, rel=1e-9)


def test_two_sites_send_everything_once_and_more_sites_less_over_each_link() -> None:
    sync = Sync(kind="exact", wire="fp32")
    two = crossing(1e9, sync, _cluster(2, [(0, 1, 1e9)]), step_seconds=1, window_seconds=0.0, buckets=1)
    assert two.sent_bytes == 4e9
    assert two.link_seconds == pytest.approx(4 / 0.95)
    assert two.exposed_seconds == pytest.approx(4 / 0.95)
    triangle = _cluster(3, [(0, 1, 1e9), (1, 2, 1e9), (0, 2, 1e9)])
    three = crossing(1e9, sync, triangle, step_seconds=1, window_seconds=0.0, buckets=1)
    assert three.sent_bytes == pytest.approx(2 * 2 / 3 * 4e9)  # reduce-scatter and all-gather: 2 (S - 1) / S
    assert three.link_seconds == pytest.approx(2 / 3 * 4 / 0.95)


def test_exact_hides_behind_the_backward_pass_all_but_the_last_bucket() -> None:
    assert exact_exposed(10.0, 0.0, 0.0, 1) == 10.0
    assert exact_exposed(10.0, 0.5, 100.0, 10) == 1.5  # only the last bucket, and the latency
    assert exact_exposed(10.0, 0.0, 4.0, 1000) == pytest.approx(6.0, abs=0.01)  # the link is busy throughout


def test_local_waits_for_what_its_steps_do_not_hide() -> None:
    diloco = Sync(kind="local", every=100)
    assert local_exposed(30.0, 1.0, 2.0, diloco, 1.0) == 33.0
    streaming = Sync(kind="local", every=100, fragments=4, overlap_steps=5)
    assert local_exposed(40.0, 0.0, 0.0, streaming, 1.0) == 4 * (10.0 - 5.0)
    assert local_exposed(16.0, 0.0, 0.0, streaming, 1.0) == 0.0
    late = Sync(kind="local", every=10, fragments=2, overlap_steps=9)
    assert local_exposed(16.0, 0.0, 0.0, late, 1.0) == 6.0  # no overlap helps a link that is too slow for H steps


@settings(deadline=None, max_examples=40)
@given(
    speed=st.floats(1e6, 1e12),
    every=st.integers(10, 500),
    fragments=st.sampled_from([1, 2, 4]),
    overlap=st.integers(0, 5),
    wire=st.sampled_from(["fp32", "int8", "int4"]),
)
def test_faster_links_rarer_rounds_and_fewer_bits_never_hurt(
    speed: float, every: int, fragments: int, overlap: int, wire: str
) -> None:
    def used(speed: float, every: int, wire: str, overlap: int) -> float:
        sync = Sync(kind="local", every=every, fragments=fragments, overlap_steps=overlap, wire=wire)
        return idealised_utilisation(1e10, 2.0, speed, sync)

    here = used(speed, every, wire, overlap)
    assert 0 < here <= 1
    assert used(2 * speed, every, wire, overlap) >= here
    assert used(speed, 2 * every, wire, overlap) >= here - 1e-12
    assert used(speed, every, wire, overlap + 1) >= here
    assert used(speed, every, "int4", overlap) >= here


def test_needed_speed_reaches_exactly_the_utilisation() -> None:
    sync = Sync(kind="exact", wire="bf16")
    speed = needed_bytes_per_second(1e9, 0.1, sync, 0.8)
    assert idealised_utilisation(1e9, 0.1, speed, sync) == pytest.approx(0.8, rel=1e-6)
    # by hand: exposed = .25 steps, so that 2e9 bytes take (2/3 + 1/4) of 0.1 s
    assert speed == pytest.approx(2e9 / (0.1 * (2 / 3 + 1 / 4)), rel=1e-6)


def test_pairs_without_a_link_go_the_widest_way_and_share_it() -> None:
    routed = _cluster(3, [(0, 1, 10e9), (1, 2, 4e9)]).routed()
    speeds = {link.ends: link.bytes_per_second for link in routed.links}
    # s0-s1 carries two pairs, s1-s2 two: each pair gets half
    assert speeds == {("s0", "s1"): 5e9, ("s0", "s2"): 2e9, ("s1", "s2"): 2e9}
    with pytest.raises(UserError, match="no links lead from s0 to s2"):
        _cluster(3, [(0, 1, 1e9)]).routed()


def test_idle_connections_start_slowly() -> None:
    cluster = Cluster(
        sites=[Site(name=name, accelerator=H100, count=8) for name in "ab"],
        links=[Link(ends=("a", "b"), bytes_per_second=125e6, rtt_seconds=0.1)],
    )
    sync = Sync(kind="local", every=10)
    busy = crossing(1e8, sync, cluster, step_seconds=0.01, window_seconds=0, buckets=1)
    idle = crossing(1e8, sync, cluster, step_seconds=1.0, window_seconds=0, buckets=1)
    # 12.5 MB of window from 4 x 14,480 bytes: 7.8 doublings of 0.1 s, less the one that they carry
    assert 10 * (idle.exposed_seconds - busy.exposed_seconds) == pytest.approx(0.675, abs=0.01)
