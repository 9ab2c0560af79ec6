"""A link of the lab: which share of its bandwidth a lane carries as payload, and its round trip.

Both ends are processes in sites of the lab: `python -m isthmus.launch.probe.link SITE ADDRESSES SMALL,LARGE STREAMS`.
They send to each other at once, as exchanges of training do: acknowledgements of what comes share the way of what goes.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from isthmus.launch.lab.links import Links, Shape
from isthmus.launch.lab.network import ShapedNetwork
from isthmus.parallelism.sites.config import LaneConfig
from isthmus.parallelism.sites.dialing import Listener, Party
from isthmus.parallelism.sites.tcp import TcpLane, connect

_PORT = 29411
_TRIPS, _ROUNDS = 5, 7
_SMALL_SECONDS, _LARGE_SECONDS = 0.2, 1.2  # of sending
_PAUSE_SECONDS = 0.1  # as a step of training leaves the link alone between two rounds


def lab_link(
    *, bandwidth_mbps: float, rtt_ms: float, streams: int = 4, timeout_seconds: float = 120.0
) -> dict[str, float]:
    """Return what a lane carries over a link of the lab: payload in Mbit/s, its share of the bandwidth, the round trip,
    and the seconds that every exchange takes beyond.

    Messages have pauses between them, as those of training: TCP gives up some of the link at the beginning of each, and
    when it looks for its round trip again. Small and large ones tell what is fixed from what grows.

    Raises:
        UserError: network namespaces are not permitted here.
    """
    small, large = (int(bandwidth_mbps * 1e6 / 8 * seconds) for seconds in (_SMALL_SECONDS, _LARGE_SECONDS))
    links = Links.uniform(["site1", "site2"], Shape(bandwidth_mbps=bandwidth_mbps, rtt_ms=rtt_ms))
    network = ShapedNetwork(links)
    words = [",".join(network.addresses), f"{small},{large}", str(streams)]
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second:
        try:
            for site, output in enumerate((first, second)):
                command = [sys.executable, "-m", "isthmus.launch.probe.link", str(site), *words]
                processes.append(network.start(site, command, output=output))
            for process in processes:
                process.wait(timeout=timeout_seconds)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            network.close()
        measured = []
        for output in (first, second):
            output.seek(0)
            measured.append(json.loads(output.read().strip().splitlines()[-1]))
    seconds = [max(one[name] for one in measured) for name in ("small", "large")]
    rtt = max(one["rtt"] for one in measured)
    rate = (large - small) / max(seconds[1] - seconds[0], 1e-9)
    mbps = rate * 8 / 1e6
    return {
        "asked_mbps": bandwidth_mbps,
        "asked_rtt_ms": rtt_ms,
        "payload_mbps": mbps,
        "efficiency": min(1.0, mbps / bandwidth_mbps),
        "rtt_ms": rtt * 1e3,
        "round_seconds": max(0.0, seconds[0] - small / rate - rtt / 2),
    }


def _exchange(site: int, addresses: Sequence[str], sizes: Sequence[int], streams: int) -> dict[str, float]:
    """Return the median seconds of an exchange of a small and of a large message each way, and of a round trip."""
    listener = Listener.open(host=addresses[site], port_range=(_PORT, _PORT))
    party = Party(site=site, names=["site1", "site2"], lane=0, hello=b"", token=b"", streams=streams, buffer_bytes=None)
    settings = LaneConfig()
    other = 1 - site
    lane = connect(
        listener,
        party,
        {other: (addresses[other], _PORT)},
        deadline_seconds=settings.deadline_seconds,
        chunk_bytes=settings.chunk_bytes,
        wait_seconds=60.0,
    )
    try:
        rtt = min(_round_trip(lane, tag) for tag in range(_TRIPS))
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for tag in range(_TRIPS, _TRIPS + 4 * _ROUNDS, 4):
            for number, size in enumerate(sizes):
                time.sleep(_PAUSE_SECONDS)
                _seconds(lane, tag + 2 * number, b"")  # so that both begin together
                seconds[size].append(_seconds(lane, tag + 2 * number + 1, bytes(size)))
        small, large = (statistics.median(seconds[size][1:]) for size in sizes)
        return {"small": small, "large": large, "rtt": rtt}
    finally:
        lane.close()
        listener.close()


def _round_trip(lane: TcpLane, tag: int) -> float:
    """Site 0 measures; the other answers when it has heard."""
    if lane.site == 0:
        return _seconds(lane, tag, b"")
    lane.take(0, tag)
    lane.exchange(tag, {0: b""})
    return 0.0


def _seconds(lane: TcpLane, tag: int, message: bytes) -> float:
    started = time.perf_counter()
    lane.exchange(tag, {1 - lane.site: message}).wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    _, place, where, amount, count = sys.argv
    amounts = [int(size) for size in amount.split(",")]
    print(json.dumps(_exchange(int(place), where.split(","), amounts, int(count))))
