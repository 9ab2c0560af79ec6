"""Messages over a stream: a JSON header, then as many byte strings as it counts. Trusted on both ends."""

import json
import struct
from collections.abc import Sequence
from socket import socket
from typing import Any

_LENGTH = struct.Struct("!I")


class Closed(Exception):
    """The other end has gone."""


def send(connection: socket, header: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Send one message.

    Raises:
        Closed: nobody reads.
    """
    described = json.dumps({**header, "parts": [len(part) for part in parts]}).encode()
    try:
        connection.sendall(b"".join((_LENGTH.pack(len(described)), described, *parts)))
    except OSError as error:
        raise Closed(str(error)) from None


def receive(connection: socket) -> tuple[dict[str, Any], list[bytes]]:
    """Wait for a message.

    Raises:
        Closed: the connection ended.
        TimeoutError: the connection has a time limit, and it has passed.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    header: dict[str, Any] = json.loads(_exactly(connection, length))
    return header, [_exactly(connection, size) for size in header.pop("parts")]


def _exactly(connection: socket, length: int) -> bytes:
    chunks = []
    while length:
        try:
            chunk = connection.recv(min(length, 1 << 20))
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(str(error)) from None
        if not chunk:
            raise Closed("end of stream")
        chunks.append(chunk)
        length -= len(chunk)
    return b"".join(chunks)
