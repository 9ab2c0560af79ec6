"""The first words on a connection between sites: who are you, and do you know the secret.

Both sides send a nonce, then a message sealed with HMAC-SHA256(secret, role, both nonces, message), so that neither a
stranger nor a recording can pass. Nothing is unpickled, and every length is bounded.
"""

import hmac
import json
import secrets
import socket
import struct
import time
from dataclasses import dataclass

_MAGIC = b"isthmus1"
_NONCE_BYTES = 16
_SEAL_BYTES = 32
_LONGEST = 1 << 20
_LENGTH = struct.Struct("<I")


class StrangerError(Exception):
    """The other side is no isthmus lane, or another one than was meant: drop the connection and go on."""


class WrongTokenError(Exception):
    """The other side is an isthmus lane with another secret."""


@dataclass(frozen=True)
class Introduction:
    """What one side says of itself."""

    site: int
    lane: int
    stream: int
    hello: bytes


def shake_hands(
    connection: socket.socket, mine: Introduction, *, token: bytes, calling: bool, seconds: float
) -> Introduction:
    """Introduce both sides to each other and return the other one.

    Raises:
        StrangerError: no lane speaks there.
        WrongTokenError: its secret is another.
        OSError: the connection broke, or took longer than `seconds`.
    """
    until = time.monotonic() + seconds
    connection.settimeout(seconds)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    connection.sendall(_MAGIC + nonce)
    answer = _receive(connection, len(_MAGIC) + _NONCE_BYTES, until)
    if answer[: len(_MAGIC)] != _MAGIC:
        raise StrangerError("it does not speak isthmus")
    theirs = answer[len(_MAGIC) :]
    ours_first = nonce + theirs if calling else theirs + nonce
    head = json.dumps([mine.site, mine.lane, mine.stream]).encode()
    message = _LENGTH.pack(len(head)) + head + mine.hello
    connection.sendall(_LENGTH.pack(len(message)) + _seal(token, calling, ours_first, message) + message)
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, until))
    if not _LENGTH.size <= length <= _LONGEST:
        raise StrangerError(f"its introduction is {length} bytes long")
    seal = _receive(connection, _SEAL_BYTES, until)
    message = _receive(connection, length, until)
    if not hmac.compare_digest(seal, _seal(token, not calling, ours_first, message)):
        raise WrongTokenError
    connection.settimeout(None)
    (head_length,) = _LENGTH.unpack(message[: _LENGTH.size])
    try:
        site, lane, stream = json.loads(message[_LENGTH.size : _LENGTH.size + head_length])
    except ValueError:
        raise StrangerError("its introduction cannot be read") from None
    return Introduction(int(site), int(lane), int(stream), message[_LENGTH.size + head_length :])


def _seal(token: bytes, calling: bool, nonces: bytes, message: bytes) -> bytes:
    return hmac.digest(token or b"none", (b"caller" if calling else b"called") + nonces + message, "sha256")


def _receive(connection: socket.socket, count: int, until: float) -> bytes:
    received = bytearray()
    while len(received) < count:
        # One limit for all: a stranger could send a byte now and then for ever.
        connection.settimeout(max(until - time.monotonic(), 0.001))
        part = connection.recv(count - len(received))
        if not part:
            raise ConnectionResetError("the connection was closed")
        received += part
    return bytes(received)
