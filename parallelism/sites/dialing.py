"""Addresses and connections of lanes: of two sites the earlier one in the list calls, the later one answers."""

import fcntl
import socket
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from isthmus.errors import UserError
from isthmus.parallelism.sites.handshake import Introduction, StrangerError, WrongTokenError, shake_hands
from isthmus.parallelism.sites.lane import LaneError
from isthmus.parallelism.sites.validate import control_congestion

_SIOCGIFADDR = 0x8915
_HANDSHAKE_SECONDS = 20.0
_PAUSE_SECONDS = 0.1

Address = tuple[str, int]


class Listener:
    """A port that is open before its address is told to anyone."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.address: Address = server.getsockname()[:2]

    @classmethod
    def open(
        cls,
        *,
        host: str,
        port_range: tuple[int, int] | None,
        buffer_bytes: int | None = None,
        congestion: str | None = None,
    ) -> "Listener":
        """Listen on a free port of the range, or on any; connections inherit buffers and congestion control.

        Raises:
            UserError: every port is taken, or the address is not this machine's.
        """
        first, last = port_range or (0, 0)
        for port in range(first, last + 1):
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _prepare(server, buffer_bytes, congestion)  # the window scale is settled when a caller comes
            try:
                server.bind((host, port))
                server.listen(256)
            except OSError as error:
                server.close()
                if error.errno in (98, 13) and port_range:
                    continue
                reason = error.strerror or str(error)
                raise UserError(
                    f"cannot listen on {host}: {reason}", where="lane.interface", fix="name an own one"
                ) from None
            return cls(server)
        raise UserError(f"{first}-{last} has no free port", where="lane.port_range", fix="one port a rank is needed")

    def close(self) -> None:
        self.server.close()


@dataclass(frozen=True)
class Party:
    """Who this side is, and how it connects."""

    site: int
    names: Sequence[str]
    lane: int
    hello: bytes
    token: bytes
    streams: int
    buffer_bytes: int | None
    congestion: str | None = None


def own_address(interface: str | None, towards: Address) -> str:
    """Return the address that lanes listen on: an interface's, the given one, or the one that routes to `towards`.

    Raises:
        UserError: there is no such interface, or no route.
    """
    if interface is None:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect(towards)
                return str(probe.getsockname()[0])
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"no way to {towards[0]}: {reason}", where="sites.store", fix="check the address") from None
    try:
        return socket.inet_ntoa(socket.inet_aton(interface)) if interface.count(".") == 3 else _address_of(interface)
    except OSError:
        raise UserError(
            f"{interface!r} is no interface with an IPv4 address", where="lane.interface", fix="see `ip -4 address`"
        ) from None


def dial(listener: Listener, party: Party, addresses: Mapping[int, Address], wait_seconds: float) -> "Connections":
    """Open all connections of a lane to the sites that `addresses` names.

    Raises:
        UserError: a site has another secret.
        LaneError: a site cannot be reached within `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    found: Connections = {site: {} for site in addresses}
    try:
        for site in (site for site in addresses if site > party.site):
            for stream in range(party.streams):
                found[site][stream] = _call(party, site, stream, addresses[site], deadline)
        callers = [site for site in addresses if site < party.site]
        known = {addresses[site][0] for site in callers}
        while missing := [site for site in callers if len(found[site]) < party.streams]:
            _answer(listener, party, found, missing, deadline, known)
    except BaseException:
        for streams in found.values():
            for connection, _ in streams.values():
                connection.close()
        raise
    return found


Connections = dict[int, dict[int, tuple[socket.socket, bytes]]]  # site -> stream -> (socket, hello)


def _call(party: Party, site: int, stream: int, address: Address, deadline: float) -> tuple[socket.socket, bytes]:
    name = party.names[site]
    while True:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        _prepare(connection, party.buffer_bytes, party.congestion)
        connection.settimeout(max(min(deadline - time.monotonic(), _HANDSHAKE_SECONDS), 0.1))
        try:
            connection.connect(address)
            _tune(connection)
            mine = Introduction(party.site, party.lane, stream, party.hello if stream == 0 else b"")
            other = shake_hands(connection, mine, token=party.token, calling=True, seconds=_HANDSHAKE_SECONDS)
            if (other.site, other.lane) == (site, party.lane):
                return connection, other.hello
            reason = "another lane answers there"
        except WrongTokenError:
            connection.close()
            raise _other_token(name) from None
        except (OSError, StrangerError) as error:
            reason = str(error)
        connection.close()
        if time.monotonic() > deadline:
            raise LaneError(name, party.lane, f"{address[0]}:{address[1]} cannot be reached: {reason}")
        time.sleep(_PAUSE_SECONDS)


def _answer(
    listener: Listener,
    party: Party,
    found: Connections,
    missing: Sequence[int],
    deadline: float,
    known: Collection[str],
) -> None:
    """Take one call; whoever is not of this lane is dropped."""
    left = deadline - time.monotonic()
    names = ", ".join(party.names[site] for site in missing)
    if left <= 0:
        raise LaneError(names, party.lane, f"did not connect to {listener.address[0]}:{listener.address[1]}")
    listener.server.settimeout(left)
    try:
        connection, caller = listener.server.accept()
    except TimeoutError:
        return
    _tune(connection)
    try:
        # Which stream this is, the caller decides.
        mine = Introduction(party.site, party.lane, -1, party.hello)
        seconds = min(left, _HANDSHAKE_SECONDS)
        other = shake_hands(connection, mine, token=party.token, calling=False, seconds=seconds)
    except WrongTokenError:
        connection.close()
        if caller[0] in known:
            raise _other_token(names) from None
        return  # a stranger's: it must not be able to end the run
    except (OSError, StrangerError):
        connection.close()
        return
    if other.lane == party.lane and other.site in missing and 0 <= other.stream < party.streams:
        found[other.site][other.stream] = (connection, other.hello)
    else:
        connection.close()


def _other_token(name: str) -> UserError:
    return UserError(f"{name} has another secret", where="sites.token_file", fix="give all sites the same file")


def _tune(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _prepare(connection: socket.socket, buffer_bytes: int | None, congestion: str | None) -> None:
    control_congestion(connection, congestion)
    if buffer_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)


def _address_of(interface: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface[:15].encode())
        return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
