"""Links: what a file or the keys say, and how the relay holds packets. Pure arithmetic."""

import random
import struct
from pathlib import Path

import pytest

from isthmus.errors import UserError
from isthmus.launch.lab.links import Links, Shape, read_links
from isthmus.launch.lab.relay import Link, measure

FILE = """
sites: [oregon, iowa, dublin]
links:
  - {between: [oregon, iowa], bandwidth_mbps: 100, rtt_ms: 36}
  - {from: dublin, to: iowa, bandwidth_mbps: 20, loss: 0.01}
"""


def write(folder: Path, content: str) -> Path:
    path = folder / "links.yaml"
    path.write_text(content)
    return path


def test_a_file_gives_each_pair_and_direction(tmp_path: Path) -> None:
    links = read_links(write(tmp_path, FILE), Shape(bandwidth_mbps=50, rtt_ms=80))
    assert links.names == ["oregon", "iowa", "dublin"]
    assert links.shapes[0, 1] == links.shapes[1, 0] == Shape(bandwidth_mbps=100, rtt_ms=36)
    assert links.shapes[2, 1] == Shape(bandwidth_mbps=20, rtt_ms=80, loss=0.01)
    assert links.shapes[1, 2] == links.shapes[0, 2] == Shape(bandwidth_mbps=50, rtt_ms=80)
    assert links.lossy
    assert not Links.uniform(["a", "b"], Shape()).lossy


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sites: [a, b]\nlinks:\n  - {between: [a, c]}", "link 1: there is no site 'c'"),
        ("sites: [a, b]\nlinks:\n  - {between: [a, b], bandwith_mbps: 1}", "there is no key 'bandwith_mbps'"),
        ("sites: [a, b]\nlinks:\n  - {between: [a, b], bandwidth_mbps: 0}", "bandwidth_mbps: is 0"),
        ("sites: [a, b]\nlinks:\n  - {between: [a, b], rtt_ms: -1}", "rtt_ms: is -1"),
        ("sites: [a, b]\nlinks:\n  - {between: [a, b], loss: 1}", "loss: is 1"),
        ("sites: [a, b]\nlinks:\n  - {between: [a, b], rtt_ms: fast}", "rtt_ms is 'fast'"),
        ("sites: [a, b]\nlinks:\n  - {between: [a, a]}", "joins a to itself"),
        ("sites: [a, b]\nlinks:\n  - {from: a}", "does not say which"),
        ("sites: [a, b]\nlinks:\n  - quick", "is 'quick'"),
        ("links: []", "names no sites"),
        ("sites: [a, b]\nlink: []", "there is no key 'link'"),
        ("sites: [a, b", "links.yaml:"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        read_links(write(tmp_path, content), Shape())
    assert expected in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_links(tmp_path / "absent.yaml", Shape())


def test_queue_is_a_round_trip_but_never_tiny() -> None:
    assert Shape(bandwidth_mbps=200, rtt_ms=80).queue_bytes() == 2_000_000
    assert Shape(bandwidth_mbps=200, rtt_ms=80, queue_ms=40).queue_bytes() == 1_000_000
    assert Shape(bandwidth_mbps=1, rtt_ms=1).queue_bytes() == 128 * 1024
    assert Shape(rtt_ms=80).queue_bytes() == float("inf")


def packet(payload: int, segment: int = 0, protocol: int = 6) -> bytes:
    """What a TUN device gives: virtio header, IPv4 header, TCP header with time stamps, payload."""
    virtio = struct.pack("=BBHHHH", 0, 1 if segment else 0, 0, segment, 0, 0)
    ip = bytes([0x45]) + bytes(8) + bytes([protocol]) + bytes(10)
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)
    return virtio + ip + tcp + bytes(payload)


def test_packets_are_counted_as_they_go_over_the_wire() -> None:
    assert measure(packet(100)) == (1, 152, 100)
    assert measure(packet(0)) == (1, 52, 0)
    # A train of segments that was not cut yet: each will carry headers of its own.
    assert measure(packet(14480, segment=1448)) == (10, 14480 + 10 * 52, 14480)
    assert measure(packet(14481, segment=1448)) == (11, 14481 + 11 * 52, 14481)
    assert measure(packet(100, protocol=17)) == (1, 152, 0)


def test_a_packet_waits_for_its_turn_and_travels() -> None:
    link = Link()
    link.set({"rate": 1000.0, "delay": 0.5, "queue_bytes": None})
    chance = random.Random(0)
    for _ in range(2):
        link.offer(packet(48), 10.0, chance)  # 100 bytes: a tenth of a second
    assert [round(at, 6) for at, _ in link.on_the_way] == [10.6, 10.7]
    link.offer(packet(48), 20.0, chance)
    assert round(link.on_the_way[-1][0], 6) == 20.6


def test_a_full_queue_and_a_cut_link_drop() -> None:
    link = Link()
    link.set({"rate": 1000.0, "queue_bytes": 250})
    chance = random.Random(0)
    for _ in range(4):
        link.offer(packet(48), 0.0, chance)
    assert (len(link.on_the_way), link.counts["dropped"]) == (2, 2)
    link.set({"cut": True})
    link.offer(packet(48), 100.0, chance)
    assert link.counts == {"packets": 5, "wire_bytes": 500, "tcp_payload_bytes": 240, "dropped": 3}


def test_loss_takes_its_share_and_jitter_never_reorders() -> None:
    link = Link()
    link.set({"loss": 0.1, "delay": 0.01, "jitter": 0.05})
    chance = random.Random(1)
    for number in range(10_000):
        link.offer(packet(1), number / 1000, chance)
    assert link.counts["dropped"] == pytest.approx(1000, rel=0.1)
    arrivals = [at for at, _ in link.on_the_way]
    assert arrivals == sorted(arrivals)
