"""The links of the lab: a process that takes packets from the sites' TUN devices, holds them, and hands them on.

A packet waits for its turn (size / bandwidth), then travels (half the round trip, jitter), unless the queue is full or
chance takes it. Without loss, packets are TCP's segments before they are cut (TSO): a train of them is held as one,
counted as many, and costs a hundredth of the processor time.

It imports nothing but the standard library and lives until its standard input closes.
"""

import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

_VNET_BYTES = 10  # struct virtio_net_hdr
_GSO_SIZE = struct.Struct("=H")
_LARGEST_PACKET = 65535 + _VNET_BYTES
_PACKETS_A_TURN = 64
_SECONDS_BETWEEN_COUNTS = 0.5
_TCP = 6


class Link:
    """One direction between two sites."""

    def __init__(self) -> None:
        self.rate: float | None = None  # bytes a second
        self.delay = self.jitter = self.loss = 0.0
        self.queue_bytes = float("inf")
        self.cut = False
        self.on_the_way: deque[tuple[float, bytes]] = deque()
        self.counts = {"packets": 0, "wire_bytes": 0, "tcp_payload_bytes": 0, "dropped": 0}
        self._free_at = 0.0
        self._last_arrival = 0.0

    def set(self, shape: dict[str, Any]) -> None:
        for name, value in shape.items():
            setattr(self, name, float("inf") if name == "queue_bytes" and value is None else value)

    def offer(self, packet: bytes, now: float, chance: random.Random) -> None:
        """Take a packet that a site has sent."""
        packets, wire_bytes, payload_bytes = measure(packet)
        counts = self.counts
        counts["packets"] += packets
        counts["wire_bytes"] += wire_bytes
        counts["tcp_payload_bytes"] += payload_bytes
        begins = max(self._free_at, now)
        full = self.rate is not None and (begins - now) * self.rate + wire_bytes > self.queue_bytes
        if self.cut or full or (self.loss and chance.random() < self.loss):
            counts["dropped"] += packets
            return
        self._free_at = begins + (wire_bytes / self.rate if self.rate else 0.0)
        arrival = self._free_at + self.delay + (chance.random() * self.jitter if self.jitter else 0.0)
        self._last_arrival = max(self._last_arrival, arrival)
        self.on_the_way.append((self._last_arrival, packet))


def measure(packet: bytes) -> tuple[int, int, int]:
    """Return how many IP packets go over the wire for what a TUN device gave us, their bytes, and TCP's payload."""
    length = len(packet) - _VNET_BYTES
    header = (packet[_VNET_BYTES] & 0x0F) * 4
    if packet[_VNET_BYTES + 9] != _TCP:
        return 1, length, 0
    header += (packet[_VNET_BYTES + header + 12] >> 4) * 4
    payload = length - header
    (segment,) = _GSO_SIZE.unpack_from(packet, 4)
    packets = -(-payload // segment) if segment and payload else 1
    return packets, payload + packets * header, payload


def relay(devices: list[int], links: dict[tuple[int, int], Link], seed: int) -> None:
    """Move packets until standard input closes; a line of it changes a link, lines of counts go to standard output."""
    chance = random.Random(seed)
    by_device = {device: site for site, device in enumerate(devices)}
    control = sys.stdin.fileno()
    os.set_blocking(control, False)
    commands = b""
    counted = 0.0
    while True:
        now = time.monotonic()
        soonest = now + _SECONDS_BETWEEN_COUNTS
        for (_, target), link in links.items():
            waiting = link.on_the_way
            while waiting and waiting[0][0] <= now:
                with suppress(OSError):  # a device that is gone takes nothing
                    os.write(devices[target], waiting.popleft()[1])
            if waiting:
                soonest = min(soonest, waiting[0][0])
        if now - counted >= _SECONDS_BETWEEN_COUNTS:
            counted = now
            _report(links)
        ready, _, _ = select.select([*devices, control], [], [], max(soonest - time.monotonic(), 0.0))
        now = time.monotonic()
        for descriptor in ready:
            if descriptor == control:
                read = os.read(control, 65536)
                if not read:
                    _report(links)
                    return
                *lines, commands = (commands + read).split(b"\n")
                for line in lines:
                    command = json.loads(line)
                    links[command["from"], command["to"]].set(command["set"])
                continue
            source = by_device[descriptor]
            for _ in range(_PACKETS_A_TURN):
                try:
                    packet = os.read(descriptor, _LARGEST_PACKET)
                except OSError:
                    break
                if packet[_VNET_BYTES] >> 4 != 4:
                    continue  # the kernel's own IPv6 greetings
                target = packet[_VNET_BYTES + 19] - 1
                if (source, target) in links:
                    links[source, target].offer(packet, now, chance)


def _report(links: dict[tuple[int, int], Link]) -> None:
    counts = [{"from": source, "to": target, **link.counts} for (source, target), link in links.items()]
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps({"at": time.monotonic(), "links": counts}) + "\n")
        sys.stdout.flush()


def main() -> None:
    orders = json.loads(sys.argv[1])
    links = {}
    for entry in orders["links"]:
        link = links[entry["from"], entry["to"]] = Link()
        link.set(entry["set"])
    with suppress(OSError):
        os.nice(-10)  # a packet must not be late because training has the processors
    relay(orders["devices"], links, orders["seed"])


if __name__ == "__main__":
    main()
