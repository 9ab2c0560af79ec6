"""A lane over TCP: several connections to each other site, chunks of messages spread over them.

Gloo was tried first. It cannot be told its ports or its socket buffers, knows no secret, and one connection of it
leaves a long link half empty; so the lane brings its own sockets, and counts its bytes where they leave.
"""

import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from typing_extensions import Buffer

from isthmus.parallelism.sites.dialing import Address, Listener, Party, dial
from isthmus.parallelism.sites.lane import LaneError

_CHUNK = struct.Struct("<QQQI")  # tag, length of the message, offset of the chunk, length of the chunk
_LARGEST_MESSAGE = 1 << 36
_RECEIVE_BYTES = 1 << 18
_SMALLEST_CHUNK = 1 << 14
_PACING_RATE = struct.Struct("<104xQ")  # of struct tcp_info, bytes/s (linux/tcp.h)
_UNSENT_SECONDS, _LEAST_UNSENT, _MOST_UNSENT = 0.05, 1 << 15, 1 << 22
_JOIN_SECONDS = 5.0
_PULSE_TAG, _PULSES_A_DEADLINE = (1 << 64) - 2, 10
_FAREWELL_TAG, _LONGEST_FAREWELL = (1 << 64) - 3, 4096


class _Message:
    """A message that comes in, in chunks of any order."""

    def __init__(self, total: int, *, pinned: bool) -> None:
        # Not a bytearray: clearing one of a large bucket would hold up every thread of this process.
        self.content = torch.empty(total, dtype=torch.uint8, pin_memory=pinned and bool(total)).numpy().data
        self.missing = total
        self.complete = total == 0


class _Peer:
    """All connections to one other site. Everything is guarded by the lane's condition."""

    def __init__(self, name: str, streams: int) -> None:
        self.name = name
        self.open_streams = streams
        self.outbox: deque[tuple[int, memoryview, int]] = deque()  # (tag, message, offset of its next chunk)
        self.unsent: dict[int, int] = {}  # tag -> bytes not yet handed to the kernel
        self.inbox: dict[int, _Message] = {}
        self.making_room = threading.Lock()  # held without the condition: memory may take its time
        self.failure: str | None = None
        self.blames: tuple[str, str] | None = None  # (site, what): for whose sake it left
        self.received_at = time.monotonic()
        self.sent_at = time.monotonic()
        self.sent = self.received = 0  # bytes


class _Exchange:
    def __init__(self, lane: "TcpLane", tag: int, peers: Sequence[int]) -> None:
        self._lane, self._tag, self._peers = lane, tag, peers
        self._result: dict[int, memoryview] | None = None

    def done(self) -> bool:
        with self._lane.changed:
            return self._result is not None or all(self._lane.is_complete(peer, self._tag) for peer in self._peers)

    def wait(self) -> dict[int, memoryview]:
        if self._result is None:
            self._result = {peer: self._lane.take(peer, self._tag) for peer in self._peers}
        return self._result


class TcpLane:
    """See `Lane`; `hellos` holds what each other site said of itself."""

    def __init__(
        self,
        party: Party,
        connections: dict[int, dict[int, tuple[socket.socket, bytes]]],
        *,
        deadline_seconds: float,
        chunk_bytes: int,
        pinned: bool = False,
    ) -> None:
        self.site, self.names, self.lane = party.site, party.names, party.lane
        self.hellos = {site: streams[0][1] for site, streams in connections.items()}
        self.changed = threading.Condition()
        self._deadline, self._chunk_bytes, self._pinned = deadline_seconds, chunk_bytes, pinned
        self._peers = {site: _Peer(party.names[site], len(streams)) for site, streams in connections.items()}
        self._sockets = [connection for streams in connections.values() for connection, _ in streams.values()]
        self._listeners: dict[int, Callable[[], None]] = {}
        self._closed = False
        self._fault: Exception | None = None  # of this side, for which no other site is to blame
        self._threads = [
            threading.Thread(
                target=work, args=(self._peers[site], connection), daemon=True, name=f"isthmus-lane-{site}"
            )
            for site, streams in connections.items()
            for connection, _ in streams.values()
            for work in (self._send_chunks, self._receive_chunks)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def bytes_sent(self) -> int:
        return sum(peer.sent for peer in self._peers.values())

    @property
    def bytes_received(self) -> int:
        return sum(peer.received for peer in self._peers.values())

    def bytes_by_site(self) -> dict[int, tuple[int, int]]:
        return {site: (peer.sent, peer.received) for site, peer in self._peers.items()}

    def listen(self, tag: int, callback: Callable[[], None]) -> None:
        with self.changed:
            here = any(self.is_complete(site, tag) for site in self._peers)
            if not here:
                self._listeners[tag] = callback
        if here:
            callback()

    def pulse(self) -> None:
        with self.changed:
            quiet = time.monotonic() - self._deadline / _PULSES_A_DEADLINE
            for peer in self._peers.values():
                if not peer.outbox and _PULSE_TAG not in peer.unsent and peer.sent_at < quiet:
                    peer.outbox.append((_PULSE_TAG, memoryview(b""), 0))
                    peer.unsent[_PULSE_TAG] = 1
            self.changed.notify_all()

    def exchange(self, tag: int, payloads: Mapping[int, Buffer]) -> _Exchange:
        with self.changed:
            for site, payload in payloads.items():
                peer, view = self._peers[site], memoryview(payload).cast("B")
                if not peer.unsent:
                    peer.sent_at = time.monotonic()
                peer.unsent[tag] = max(len(view), 1)
                peer.outbox.append((tag, view, 0))
            self.changed.notify_all()
        return _Exchange(self, tag, list(payloads))

    def is_complete(self, site: int, tag: int) -> bool:
        message = self._peers[site].inbox.get(tag)
        return message is not None and message.complete

    def take(self, site: int, tag: int) -> memoryview:
        """Wait until a message has come and ours of the same tag has left; hand it out.

        Raises:
            LaneError: the site has gone, or nothing has moved for the lane's deadline.
            RuntimeError: it is this side that failed, for want of memory perhaps.
        """
        peer, began = self._peers[site], time.monotonic()
        with self.changed:
            while not (self.is_complete(site, tag) and tag not in peer.unsent):
                if self._fault is not None:
                    raise RuntimeError(f"lane {self.lane} to site {peer.name} failed here") from self._fault
                if peer.failure is not None:
                    raise self._error(peer)
                if self._closed:
                    raise LaneError(peer.name, self.lane, "the lane was closed")
                receiving = not self.is_complete(site, tag)
                moved = max(began, peer.received_at if receiving else peer.sent_at)
                left = moved + self._deadline - time.monotonic()
                if left <= 0:
                    direction = "come" if receiving else "been taken"
                    peer.failure = f"nothing has {direction} for {self._deadline:g} s"
                    continue
                self.changed.wait(left)
            return peer.inbox.pop(tag).content

    def _error(self, peer: _Peer) -> LaneError:
        """Name the site that was lost first: whoever noticed it has left too, and said why."""
        if peer.blames is not None:
            site, what = peer.blames
            return LaneError(site, self.lane, f"{what} (says {peer.name}, which has ended)")
        return LaneError(peer.name, self.lane, peer.failure or "it was lost")

    def _say_farewell(self) -> None:
        lost = next((peer for peer in self._peers.values() if peer.failure is not None), None)
        if lost is None:
            return
        message = memoryview(json.dumps(lost.blames or (lost.name, lost.failure)).encode()[:_LONGEST_FAREWELL])
        for peer in self._peers.values():
            if peer.failure is None:
                peer.outbox.append((_FAREWELL_TAG, message, 0))
                peer.unsent[_FAREWELL_TAG] = len(message)
        self.changed.notify_all()

    def close(self) -> None:
        """Let what was handed over leave, then close all connections; takes seconds at most."""
        with self.changed:
            self._say_farewell()
            until = time.monotonic() + _JOIN_SECONDS
            while any(peer.unsent and peer.failure is None for peer in self._peers.values()):
                if not self.changed.wait(until - time.monotonic()):
                    break
            self._closed = True
            self.changed.notify_all()
        for connection in self._sockets:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is gone already
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
        for connection in self._sockets:
            connection.close()

    def _send_chunks(self, peer: _Peer, connection: socket.socket) -> None:
        """Take chunk after chunk of what waits for the peer: a slow connection simply takes fewer."""
        try:
            while (chunk := self._next_chunk(peer)) is not None:
                tag, message, offset, part = chunk
                header = _CHUNK.pack(tag, len(message), offset, len(part))
                limit_unsent(connection)
                _send_all(connection, header, part)
                with self.changed:
                    peer.sent_at = time.monotonic()
                    peer.sent += len(header) + len(part)
                    peer.unsent[tag] -= max(len(part), 1)
                    if not peer.unsent[tag]:
                        del peer.unsent[tag]
                        self.changed.notify_all()
        except OSError as error:
            self._fail(peer, f"the connection broke: {error.strerror or error}")
        except Exception as error:
            self._fail_here(error)

    def _next_chunk(self, peer: _Peer) -> tuple[int, memoryview, int, memoryview] | None:
        with self.changed:
            while not peer.outbox:
                if self._closed or peer.failure is not None:
                    return None
                self.changed.wait()
            tag, message, offset = peer.outbox.popleft()
            end = min(offset + self._chunk_of(peer, len(message) - offset), len(message))
            if end < len(message):
                peer.outbox.appendleft((tag, message, end))
            return tag, message, offset, message[offset:end]

    def _chunk_of(self, peer: _Peer, left: int) -> int:
        """Return how much of a message to send at once; it shrinks towards the end of all that waits, so that no
        connection still sends a large chunk when the others have nothing left to do.
        """
        waiting = left + sum(len(message) - offset for _, message, offset in peer.outbox)
        share = waiting // (2 * max(peer.open_streams, 1))
        return min(max(share, _SMALLEST_CHUNK), self._chunk_bytes)

    def _receive_chunks(self, peer: _Peer, connection: socket.socket) -> None:
        header = memoryview(bytearray(_CHUNK.size))
        try:
            while self._fill(peer, connection, header):
                tag, total, offset, length = _CHUNK.unpack(header)
                if total > _LARGEST_MESSAGE or offset + length > total:
                    self._fail(peer, "what came makes no sense")
                    return
                if tag == _PULSE_TAG:
                    continue
                message = self._message(peer, tag, total)
                target = message.content[offset : offset + length]
                if len(message.content) != total or not self._fill(peer, connection, target):
                    self._fail(peer, "the connection was closed in the middle of a message")
                    return
                with self.changed:
                    message.missing -= length
                    message.complete = not message.missing
                    if message.complete:
                        if tag == _FAREWELL_TAG:
                            self._hear_farewell(peer, message.content)
                        self.changed.notify_all()
                    heard = self._listeners.pop(tag, None) if message.complete else None
                if heard is not None:
                    heard()
            self._closed_by(peer)
        except OSError as error:
            self._fail(peer, f"the connection broke: {error.strerror or error}")
        except Exception as error:  # whoever waits must hear of it
            self._fail_here(error)

    def _message(self, peer: _Peer, tag: int, total: int) -> _Message:
        """Return where a message is put together; its first chunk makes room for it."""
        with peer.making_room:
            with self.changed:
                message = peer.inbox.get(tag)
            if message is None:
                message = _Message(total, pinned=self._pinned)
                with self.changed:
                    peer.inbox[tag] = message
            return message

    @staticmethod
    def _hear_farewell(peer: _Peer, content: memoryview) -> None:
        try:
            site, what = json.loads(bytes(content[:_LONGEST_FAREWELL]))
            peer.blames = (str(site), str(what))
        except (ValueError, TypeError):
            peer.blames = None  # a site that is lost can still be named itself

    def _fill(self, peer: _Peer, connection: socket.socket, target: memoryview) -> bool:
        """Receive exactly so many bytes; return False if the other side has closed."""
        filled = 0
        while filled < len(target):
            count = connection.recv_into(target[filled : filled + _RECEIVE_BYTES])
            if not count:
                return False
            filled += count
            with self.changed:
                peer.received_at = time.monotonic()
                peer.received += count
        return True

    def _closed_by(self, peer: _Peer) -> None:
        """One stream has ended; what the others still bring counts, as long as one is left."""
        with self.changed:
            peer.open_streams -= 1
        if not peer.open_streams:
            self._fail(peer, "the connection was closed by the other side")

    def _fail_here(self, error: Exception) -> None:
        with self.changed:
            self._fault = self._fault or error
            self.changed.notify_all()

    def _fail(self, peer: _Peer, what: str) -> None:
        with self.changed:
            peer.failure = peer.failure or what
            self.changed.notify_all()


def connect(
    listener: Listener,
    party: Party,
    addresses: Mapping[int, Address],
    *,
    deadline_seconds: float,
    chunk_bytes: int,
    wait_seconds: float,
    pinned: bool = False,
) -> TcpLane:
    """Connect to the ranks of this lane in all other sites.

    Args:
        addresses: where each other site's rank listens.
        deadline_seconds: a wait fails when nothing has moved for so long.
        chunk_bytes: size of the pieces that are spread over the connections.
        pinned: what comes goes on to a GPU, so it is received into page-locked memory.

    Raises:
        UserError: a site has another secret.
        LaneError: a site cannot be reached within `wait_seconds`.
    """
    connections = dial(listener, party, addresses, wait_seconds)
    return TcpLane(party, connections, deadline_seconds=deadline_seconds, chunk_bytes=chunk_bytes, pinned=pinned)


def limit_unsent(connection: socket.socket) -> None:
    """Let the kernel take on little more than it sends soon: what lies in the buffer of a connection that turns out
    slow, the others cannot take over.
    """
    (rate,) = _PACING_RATE.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _PACING_RATE.size))
    unsent = min(max(int(rate * _UNSENT_SECONDS), _LEAST_UNSENT), _MOST_UNSENT)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)


def _send_all(connection: socket.socket, header: bytes, part: memoryview) -> None:
    sent = connection.sendmsg([header, part])
    if sent < len(header):
        connection.sendall(header[sent:])
        sent = len(header)
    if (rest := part[sent - len(header) :]).nbytes:
        connection.sendall(rest)
