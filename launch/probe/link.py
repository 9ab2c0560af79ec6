"""A link of the lab: which share of its bandwidth TCP connections carry as payload, and its round trip.

Both ends are processes in sites of the lab: `python -m isthmus.launch.probe.link receive|send ADDRESS BYTES STREAMS`.
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any

from isthmus.launch.lab.links import Links, Shape
from isthmus.launch.lab.network import ShapedNetwork

_PORT = 29411
_CHUNK = 1 << 18


def lab_link(
    *, bandwidth_mbps: float, rtt_ms: float, streams: int = 4, seconds: float = 4.0, timeout_seconds: float = 120.0
) -> dict[str, float]:
    """Return what a link of the lab carries: payload in Mbit/s, its share of the bandwidth, the round trip.

    Raises:
        UserError: network namespaces are not permitted here.
    """
    size = int(bandwidth_mbps * 1e6 / 8 * seconds)
    links = Links.uniform(["site1", "site2"], Shape(bandwidth_mbps=bandwidth_mbps, rtt_ms=rtt_ms))
    network = ShapedNetwork(links)
    command = [sys.executable, "-m", "isthmus.launch.probe.link"]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with tempfile.TemporaryFile() as output:
            words = [network.addresses[0], str(size), str(streams)]
            processes.append(network.start(0, [*command, "receive", *words], output=None))
            processes.append(network.start(1, [*command, "send", *words], output=output))
            for process in processes:
                process.wait(timeout=timeout_seconds)
            output.seek(0)
            measured = json.loads(_last_line(output))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        network.close()
    mbps = size * 8 / 1e6 / (measured["seconds"] - rtt_ms / 1e3)  # connecting is not carrying
    return {
        "asked_mbps": bandwidth_mbps,
        "asked_rtt_ms": rtt_ms,
        "payload_mbps": mbps,
        "efficiency": min(1.0, mbps / bandwidth_mbps),
        "rtt_ms": measured["rtt"] * 1e3,
    }


def _last_line(output: IO[Any]) -> bytes:
    return bytes(output.read().strip().splitlines()[-1])


def _receive(address: str, size: int, streams: int) -> None:
    """Take `size` bytes over all connections together, and answer each with a byte; first, echo one byte."""
    with socket.create_server((address, _PORT), backlog=streams + 1) as server:
        echo, _ = server.accept()
        with echo:
            echo.sendall(echo.recv(1))
        threads = []
        for _ in range(streams):
            connection, _ = server.accept()
            threads.append(threading.Thread(target=_drain, args=(connection, size // streams)))
            threads[-1].start()
        for thread in threads:
            thread.join()


def _drain(connection: socket.socket, size: int) -> None:
    with connection:
        left = size
        while left:
            left -= len(connection.recv(min(left, _CHUNK)))
        connection.sendall(b"!")


def _send(address: str, size: int, streams: int) -> dict[str, float]:
    echo = _connect(address)
    with echo:
        started = time.perf_counter()
        echo.sendall(b"?")
        echo.recv(1)
        rtt = time.perf_counter() - started
    connections = [_connect(address) for _ in range(streams)]
    content = bytes(size // streams)
    started = time.perf_counter()
    threads = [threading.Thread(target=_push, args=(connection, content)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": time.perf_counter() - started, "rtt": rtt}


def _push(connection: socket.socket, content: bytes) -> None:
    with connection:
        connection.sendall(content)
        connection.recv(1)


def _connect(address: str, patience_seconds: float = 30.0) -> socket.socket:
    ends = time.monotonic() + patience_seconds
    while True:
        try:
            return socket.create_connection((address, _PORT), timeout=patience_seconds)
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    _, role, where, amount, count = sys.argv
    if role == "receive":
        _receive(where, int(amount), int(count))
    else:
        print(json.dumps(_send(where, int(amount), int(count))))
