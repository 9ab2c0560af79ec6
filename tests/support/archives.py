"""Web archives for tests, written from the standard (WARC 1.1, ISO 28500:2017)."""

import gzip
import io
from collections.abc import Sequence

from isthmus.data.readers.records import Limits
from isthmus.data.readers.streams import Stream


def stream_of(content: bytes, limits: Limits | None = None, start: int = 0, name: str = "") -> Stream:
    return Stream(io.BytesIO(content), limits or Limits(), start=start, name=name)


def warc_record(kind: str, url: str, payload: bytes, content_type: str = "application/http; msgtype=response") -> bytes:
    head = (
        f"WARC/1.1\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-01T10:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{len(payload):012d}>\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload + b"\r\n\r\n"


def http_answer(body: bytes, content_type: str = "text/html; charset=utf-8", *headers: str, status: int = 200) -> bytes:
    lines = [f"HTTP/1.1 {status} OK", f"Content-Type: {content_type}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def page_record(url: str, body: bytes, content_type: str = "text/html; charset=utf-8", *headers: str) -> bytes:
    return warc_record("response", url, http_answer(body, content_type, *headers))


def warc_gz(records: Sequence[bytes]) -> list[bytes]:
    """Return one gzip member for each record."""
    return [gzip.compress(record, mtime=0) for record in records]
