"""A link of the lab: which share of its bandwidth a lane carries as payload, and its round trip.

Both ends are processes in sites of the lab: `python -m isthmus.launch.probe.link SITE ADDRESSES BYTES STREAMS`. They
send to each other at once, as exchanges of training do: acknowledgements of what comes share the way of what goes.
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
_TRIPS, _ROUNDS = 5, 9
_PAUSE_SECONDS = 0.1  # as a step of training leaves the link alone between two rounds


def lab_link(
    *, bandwidth_mbps: float, rtt_ms: float, streams: int = 4, seconds: float = 0.5, timeout_seconds: float = 120.0
) -> dict[str, float]:
    """Return what a lane carries over a link of the lab: payload in Mbit/s, its share of the bandwidth, the round trip.

    The payload is that of messages of so many `seconds` with pauses between them, as training sends them: TCP gives up
    some of the link at the beginning of each, and when it looks for its round trip again.

    Raises:
        UserError: network namespaces are not permitted here.
    """
    size = int(bandwidth_mbps * 1e6 / 8 * seconds)
    links = Links.uniform(["site1", "site2"], Shape(bandwidth_mbps=bandwidth_mbps, rtt_ms=rtt_ms))
    network = ShapedNetwork(links)
    words = [",".join(network.addresses), str(size), str(streams)]
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
    mbps = size * 8 / 1e6 / max(one["seconds"] for one in measured)
    return {
        "asked_mbps": bandwidth_mbps,
        "asked_rtt_ms": rtt_ms,
        "payload_mbps": mbps,
        "efficiency": min(1.0, mbps / bandwidth_mbps),
        "rtt_ms": max(one["rtt"] for one in measured) * 1e3,
    }


def _exchange(site: int, addresses: Sequence[str], size: int, streams: int) -> dict[str, float]:
    """Return the seconds of an exchange of `size` bytes each way, and of an empty one, there and back."""
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
        # Both begin at the same time, as soon as the last message of the other has come: half a round trip later.
        half = min(_seconds(lane, tag, b"") for tag in range(_TRIPS))
        seconds = []
        for tag in range(_TRIPS, _TRIPS + 2 * _ROUNDS, 2):
            time.sleep(_PAUSE_SECONDS)
            _seconds(lane, tag, b"")
            seconds.append(_seconds(lane, tag + 1, bytes(size)))
        return {"seconds": statistics.median(seconds[1:]) - half, "rtt": 2 * half}
    finally:
        lane.close()
        listener.close()


def _seconds(lane: TcpLane, tag: int, message: bytes) -> float:
    started = time.perf_counter()
    lane.exchange(tag, {1 - lane.site: message}).wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    _, place, where, amount, count = sys.argv
    print(json.dumps(_exchange(int(place), where.split(","), int(amount), int(count))))
