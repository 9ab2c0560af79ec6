"""One link between two sites, measured from both ends at once on connections that are open already.

On the first connection both ends talk: what to do next, and what came out. The others carry what is measured.
"""

import json
import secrets
import selectors
import socket
import statistics
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.launch.preflight.observe import Clock

_LENGTH = struct.Struct("<I")
_LONGEST = 1 << 20
_PINGS = 20
_PING_SECONDS = 3.0  # for all of them together
_PROBE = struct.Struct("<16sId")
_PROBE_BYTES = 200
_PROBE_SECONDS = 2.0
_SEND = memoryview(bytes(1 << 20))
_RECEIVE_BYTES = 1 << 20
_UNSENT_BYTES = 1 << 18
_SLOW_START_TRIPS = 30  # round trips of a stage at least: TCP doubles its rate with each
_LONGEST_STAGE = 6.0
_SETTLED, _LATE = (0.35, 0.55), 0.8  # of a stage: from somewhere in the first to somewhere after the second
_PATIENCE_SECONDS = 20.0
_COUNT = struct.Struct("=I")
# Offsets in struct tcp_info (linux/tcp.h).
_TCP_INFO_BYTES, _TOTAL_RETRANS, _DATA_SEGS_OUT = 192, 100, 156


@dataclass
class LinkEnd:
    """This end of a link: the connection to talk on, those that carry, the datagrams' socket and where they go."""

    control: socket.socket
    streams: Sequence[socket.socket]
    datagrams: socket.socket
    peer: tuple[str, int]
    first: bool  # whether this end begins


def stream_counts(streams: int) -> list[int]:
    """Return 1, 2, 4, ... and the number itself."""
    counts = [1]
    while counts[-1] * 2 < streams:
        counts.append(counts[-1] * 2)
    return counts if streams == 1 else [*counts, streams]


def measure(end: LinkEnd, *, probes: int, seconds: float, clock: Clock) -> dict[str, Any]:
    """Return round trip, clock offset and for each direction ("out" is away from this end) loss, jitter and rates.

    Raises:
        OSError: the link broke off.
    """
    end.control.settimeout(_PATIENCE_SECONDS)
    trip = _ping(end, clock)
    sent, received = _probe(end, probes)
    found: dict[str, Any] = {**trip, "out": sent, "in": received}
    stage = stage_seconds(seconds, trip["rtt_seconds"])
    for outward in (end.first, not end.first):
        direction = found["out" if outward else "in"]
        direction["mbps"], segments, repeated = {}, 0.0, 0.0
        for count in stream_counts(len(end.streams)):
            result = _send(end, count, stage) if outward else _receive(end, count)
            direction["mbps"][str(count)] = result["mbps"]
            segments, repeated = segments + result["segments"], repeated + result["repeated"]
        direction["repeated"] = repeated / max(segments, 1.0)
    return found


def fill(end: LinkEnd, seconds: float) -> dict[str, float]:
    """Use all connections one way and then the other, beside the other machines of both sites; return Mbit/s.

    Raises:
        OSError: the link broke off.
    """
    end.control.settimeout(_PATIENCE_SECONDS)
    found = {}
    for outward in (end.first, not end.first):
        result = _send(end, len(end.streams), seconds) if outward else _receive(end, len(end.streams))
        found["out" if outward else "in"] = result["mbps"]
    return found


def stage_seconds(seconds: float, rtt_seconds: float) -> float:
    """Return how long to send for a rate that has settled."""
    return min(max(seconds, _SLOW_START_TRIPS * rtt_seconds), _LONGEST_STAGE)


def say(connection: socket.socket, what: Any) -> None:
    message = json.dumps(what).encode()
    connection.sendall(_LENGTH.pack(len(message)) + message)


def hear(connection: socket.socket) -> Any:
    """Return what the other end said.

    Raises:
        OSError: nothing in time, or nothing that makes sense.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > _LONGEST:
        raise ConnectionError("what came makes no sense")
    try:
        return json.loads(_exactly(connection, length))
    except ValueError:
        raise ConnectionError("what came makes no sense") from None


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        part = connection.recv(count - len(content))
        if not part:
            raise ConnectionResetError("the connection was closed by the other side")
        content += part
    return bytes(content)


def _ping(end: LinkEnd, clock: Clock) -> dict[str, float]:
    """Return the median round trip, and how far the other clock is ahead, from the shortest trip (as NTP does)."""
    if not end.first:
        while hear(end.control) == "ping":
            say(end.control, clock())
        theirs: dict[str, float] = hear(end.control)
        return {"rtt_seconds": theirs["rtt_seconds"], "clock_ahead_seconds": -theirs["clock_ahead_seconds"]}
    trips: list[tuple[float, float]] = []
    ends = time.monotonic() + _PING_SECONDS
    while len(trips) < 3 or (len(trips) < _PINGS and time.monotonic() < ends):
        left, began = clock(), time.perf_counter()
        say(end.control, "ping")
        there = hear(end.control)
        took = time.perf_counter() - began
        trips.append((took, there - (left + took / 2)))
    found = {"rtt_seconds": statistics.median(took for took, _ in trips), "clock_ahead_seconds": min(trips)[1]}
    say(end.control, "enough")
    say(end.control, found)
    return found


def _probe(end: LinkEnd, probes: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send datagrams at a steady pace both ways; return what became of ours and of theirs.

    What is lost here was not crowded out by our own traffic. None where not one came through: then a firewall takes
    datagrams, which training does not need, and nothing is known of them.
    """
    cookie = secrets.token_bytes(16)
    say(end.control, {"cookie": cookie.hex(), "probes": probes})
    theirs = hear(end.control)
    expected, coming = bytes.fromhex(theirs["cookie"]), int(theirs["probes"])
    end.datagrams.setblocking(False)
    began = time.monotonic()
    delays: dict[int, float] = {}
    sent = 0
    while (now := time.monotonic()) < began + _PROBE_SECONDS + 1.0:
        while sent < probes and now >= began + sent * _PROBE_SECONDS / probes:
            _throw(end, _PROBE.pack(cookie, sent, now).ljust(_PROBE_BYTES, b"\0"))
            sent += 1
        _catch(end.datagrams, expected, delays)
        time.sleep(0.0005)
    seen = _seen(delays, coming)
    say(end.control, seen)
    return hear(end.control), seen


def _throw(end: LinkEnd, packet: bytes) -> None:
    try:
        end.datagrams.sendto(packet, end.peer)
    except OSError:
        return  # a full queue of our own, or a port that refuses: it counts as lost


def _catch(datagrams: socket.socket, cookie: bytes, delays: dict[int, float]) -> None:
    while True:
        try:
            packet = datagrams.recv(2 * _PROBE_BYTES)
        except OSError:
            return
        if len(packet) == _PROBE_BYTES and packet.startswith(cookie):
            _, number, sent_at = _PROBE.unpack_from(packet)
            delays.setdefault(number, time.monotonic() - sent_at)


def _seen(delays: dict[int, float], probes: int) -> dict[str, Any]:
    """Return the share that is missing, and how much later than half of them nineteen of twenty have come."""
    if not delays:
        return {"loss": None, "jitter_seconds": None}
    in_order = sorted(delays.values())
    late = in_order[int(0.95 * (len(in_order) - 1))]
    return {"loss": 1 - len(delays) / probes, "jitter_seconds": late - statistics.median(in_order)}


def _send(end: LinkEnd, count: int, seconds: float) -> dict[str, float]:
    """Fill so many connections for a while; return what the other end saw."""
    streams = end.streams[:count]
    assert hear(end.control) == "ready"
    before: list[tuple[int, int]] = []
    sent = [0] * count
    with selectors.DefaultSelector() as selector:
        for number, stream in enumerate(streams):
            stream.setblocking(False)
            # What the kernel holds back would have to leave, too, before the next stage: on a thin link for minutes.
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
            selector.register(stream, selectors.EVENT_WRITE, number)
        say(end.control, seconds)
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if not before and left < seconds / 2:
                before = [
                    _segments(stream) for stream in streams
                ]  # at the start TCP feels its way, and loses by itself
            for key, _ in selector.select(left):
                try:
                    sent[key.data] += key.fileobj.send(_SEND)  # type: ignore[union-attr]
                except BlockingIOError:
                    continue
    after = [_segments(stream) for stream in streams]
    before = before or after
    segments, repeated = (sum(new[i] - old[i] for old, new in zip(before, after, strict=True)) for i in (0, 1))
    say(end.control, {"sent": sent, "segments": segments, "repeated": repeated})
    result: dict[str, float] = hear(end.control)
    return result


def _receive(end: LinkEnd, count: int) -> dict[str, float]:
    """Take what comes until all of it is there; return the rate once it had settled."""
    streams = end.streams[:count]
    say(end.control, "ready")
    seconds = float(hear(end.control))
    buffer = memoryview(bytearray(_RECEIVE_BYTES))
    taken = [0] * count
    arrivals: list[tuple[float, int]] = []  # (when, bytes so far)
    told: dict[str, Any] | None = None
    ends = time.monotonic() + seconds + _PATIENCE_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(end.control, selectors.EVENT_READ, None)
        for number, stream in enumerate(streams):
            stream.setblocking(False)
            selector.register(stream, selectors.EVENT_READ, number)
        while told is None or sum(taken) < sum(told["sent"]):
            ready = selector.select(max(ends - time.monotonic(), 0))
            if not ready:
                raise TimeoutError("nothing came any more")
            for key, _ in ready:
                if key.data is None:
                    told = hear(end.control)
                    selector.unregister(end.control)
                elif got := key.fileobj.recv_into(buffer):  # type: ignore[union-attr]
                    taken[key.data] += got
                    arrivals.append((time.monotonic(), sum(taken)))
                else:
                    raise ConnectionResetError("the connection was closed by the other side")
    assert told is not None
    result = {"mbps": settled_mbps(arrivals, seconds), "segments": told["segments"], "repeated": told["repeated"]}
    say(end.control, result)
    return result


def settled_mbps(arrivals: Sequence[tuple[float, int]], seconds: float) -> float:
    """Return Mbit/s of payload after the start has been forgotten: TCP begins slowly, whatever the link.

    What waited behind a lost segment comes all at once when that is there, so that a window which begins during the
    wait counts too much. What has come never exceeds what the link could carry: the rate is the slope along the upper
    edge of the curve, from among the early arrivals to among the late ones.

    Args:
        arrivals: (when, bytes so far), in order.
        seconds: how long the other end sent.
    """
    if len(arrivals) < 2:
        return 0.0
    began = arrivals[0][0]
    early = [entry for entry in arrivals if _SETTLED[0] * seconds <= entry[0] - began <= _SETTLED[1] * seconds]
    late = [entry for entry in arrivals if _LATE * seconds <= entry[0] - began <= seconds]
    if not early or not late:
        early, late = [arrivals[0]], [arrivals[-1]]
    ends = max(late, key=lambda entry: (entry[1] - early[0][1]) / (entry[0] - early[0][0] or 1e-6))
    slope = min((ends[1] - taken) / (ends[0] - at or 1e-6) for at, taken in early)
    return slope * 8 / 1e6


def _segments(connection: socket.socket) -> tuple[int, int]:
    """Return how many segments with data a connection has sent, and how many of them again."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(info) < _DATA_SEGS_OUT + 4:
        return 0, 0
    return _COUNT.unpack_from(info, _DATA_SEGS_OUT)[0], _COUNT.unpack_from(info, _TOTAL_RETRANS)[0]
