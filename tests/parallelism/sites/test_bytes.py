"""Bytes on the wire are those that the codec says, by the formula of docs/sites.md."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.ranks import RankWorld
from support.wan import sites_over_links

from isthmus.parallelism.sites.allreduce import AllReduce, Couriers
from isthmus.parallelism.sites.blocks import BlockLayout
from isthmus.parallelism.sites.config import LaneConfig, SitesConfig, Wire
from isthmus.parallelism.sites.meeting import Attendance, meet
from isthmus.parallelism.sites.wire import codec_for

NUMBERS, ROUNDS, CHUNK, SMALLEST_CHUNK, CHUNK_HEADER = 1_000_003, 3, 262_144, 16_384, 28
TCP_IP_HEADERS, SEGMENT = 52, 1448  # IPv4 and TCP with time stamps, in packets of 1500 bytes


def exchange(world: RankWorld, tell: Callable[[Any], None], wire: Wire) -> tuple[int, int]:
    """Sum numbers over the sites a few times; tell when the meeting is over, then answer with the lane's counts."""
    names = [f"site{site}" for site in range(world.sites)]
    sites = SitesConfig(name=names[world.site], names=names, store=world.store)
    attendance = Attendance(run="bytes", world_size=1, rank=0, config={})
    with meet(sites, LaneConfig(chunk_bytes=CHUNK), attendance, tell=lambda line: None) as lane:
        codec = codec_for(wire, 0.02)
        layout = BlockLayout([NUMBERS], codec.block)
        couriers = Couriers(1)
        reduction = AllReduce(lane, couriers, codec, layout, torch.device("cpu"), decay=1.0)
        before = lane.bytes_sent, lane.bytes_received
        tell("met")
        time.sleep(3.0)  # the relay's counts settle
        values = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(world.site))
        for tag in range(ROUNDS):
            assert reduction.start(2 * tag, lambda: layout.pack([values], reduction.values_NB)).result()
            reduction.commit()
        couriers.close()
        tell((lane.bytes_sent - before[0], lane.bytes_received - before[1]))
        time.sleep(3.0)
        return lane.bytes_sent, lane.bytes_received


def formula(wire: Wire, sites: int, chunk: int) -> float:
    """Bytes that a site sends in a round, headers of chunks included."""
    codec = codec_for(wire, 0.02)
    blocks = -(-NUMBERS // codec.block)
    messages = [blocks] if sites == 2 else 2 * (sites - 1) * [blocks / sites]
    total = 0.0
    for part in messages:
        payload = codec.payload_bytes(1) * part + 1
        total += payload + CHUNK_HEADER * -(-payload // chunk)
    return total


@pytest.mark.parametrize(("wire", "sites"), [*((wire, 2) for wire in Wire), (Wire.int8, 3), (Wire.fp32, 3)])
def test_the_relay_counts_what_the_formula_says(wire: Wire, sites: int) -> None:
    with sites_over_links(exchange, wire, sites=sites, rtt_ms=2) as running:
        assert [running.hear(site) for site in range(sites)] == ["met"] * sites
        before = running.network.settled_counts()
        counted = [running.hear(site) for site in range(sites)]
        after = running.network.settled_counts()
    for site in range(sites):
        sent, received = counted[site]
        fewest, most = formula(wire, sites, CHUNK), formula(wire, sites, SMALLEST_CHUNK)
        assert 0.999 * ROUNDS * fewest <= sent <= 1.001 * ROUNDS * most
        assert received == pytest.approx(sent, rel=0.001)
        links = [(source, target) for source, target in after if source == site]
        payload = sum(after[link]["tcp_payload_bytes"] - before[link]["tcp_payload_bytes"] for link in links)
        on_the_wire = sum(after[link]["wire_bytes"] - before[link]["wire_bytes"] for link in links)
        # Nothing is lost on these links, so TCP repeats next to nothing.
        assert payload == pytest.approx(sent, rel=0.02)
        # Acknowledgements of what comes the other way are headers alone.
        assert sent * (1 + TCP_IP_HEADERS / SEGMENT) * 0.98 <= on_the_wire <= sent * (1 + 3 * TCP_IP_HEADERS / SEGMENT)
