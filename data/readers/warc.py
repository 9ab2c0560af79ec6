"""Web archives: WARC responses and the text of WET files.

Records are framed here, so that a bad one costs itself only; HTTP inside a record is fastwarc's.
"""

import io
import re
from collections.abc import Iterator

from isthmus.data.extras import need
from isthmus.data.readers.records import Corrupt, Form, Limits, Record, Reject, utf8
from isthmus.data.readers.streams import Stream

_HEADER_BYTES = 1 << 16
_RESCAN_BYTES = 1 << 18  # what a record with a wrong length covered is searched for others up to this size
_DAMAGES_IN_A_ROW = 1_000  # after which the rest of a file is given up
_FIELD = re.compile(rb"^([A-Za-z-]+):[ \t]*(.*?)[ \t]*\r?$", re.MULTILINE)
_HTML = ("text/html", "application/xhtml+xml")


def read_warc(stream: Stream, file: str, limits: Limits) -> Iterator[Record | Reject]:
    """Yield pages (responses with HTML), texts (conversions), and what else was answered as `Form.other`.

    Offsets are those of the record in the file as it is stored: of the gzip member, or of the byte.
    """
    offset = damages = 0
    while True:
        if damages > _DAMAGES_IN_A_ROW:
            yield Reject(file, offset, f"more than {_DAMAGES_IN_A_ROW} damaged places in a row; the rest is given up")
            return
        try:
            _skip_blank(stream)
            offset = stream.stored_offset
            line, _ = stream.line(_HEADER_BYTES)
            if not line:
                return
            if not line.startswith(b"WARC/"):
                raise Corrupt("no WARC record where one should begin", offset)
            yield from _record(stream, line, file, offset, limits)
            damages = 0
        except Corrupt as error:
            damages += 1
            yield Reject(file, max(offset, error.offset), error.reason)
            if not _next_record(stream):
                return


def _skip_blank(stream: Stream) -> None:
    while True:
        byte = stream.read(1)
        if byte and byte not in b"\r\n":
            stream.unread(byte)
            return
        if not byte:
            return


def _next_record(stream: Stream) -> bool:
    """Go to the next gzip member, or in a plain file to the next line that begins a record."""
    if stream.compressed:
        while True:
            try:
                return stream.resume()
            except Corrupt:
                continue
    while True:
        line, _ = stream.line(_HEADER_BYTES)
        if not line:
            return False
        if line.startswith(b"WARC/1."):
            stream.unread(line)
            return True


def _record(stream: Stream, first: bytes, file: str, offset: int, limits: Limits) -> Iterator[Record | Reject]:
    head = [first]
    size = len(first)
    while True:
        line, too_long = stream.line(_HEADER_BYTES)
        size += len(line)
        if not line or too_long or size > _HEADER_BYTES:
            raise Corrupt("a WARC header without an end", offset)
        if line.startswith(b"WARC/"):
            stream.unread(line)
            raise Corrupt("a WARC header that was cut off", offset)
        head.append(line)
        if line in (b"\r\n", b"\n"):
            break
    header = b"".join(head)
    found = [(name.lower(), value) for name, value in _FIELD.findall(header)]
    fields = dict(found)
    if sum(name in (b"warc-type", b"content-length") for name, _ in found) > 2:
        raise Corrupt("a WARC header that runs into the next one", offset)
    length_field = fields.get(b"content-length", b"")
    if not length_field.isdigit() or len(length_field) > 15:
        raise Corrupt("a WARC record without a length", offset)
    length = int(length_field)
    kind = fields.get(b"warc-type", b"").lower()
    if kind not in (b"response", b"conversion", b"resource"):
        if stream.skip(length) < length:
            raise Corrupt("a truncated WARC record", offset)
        return
    if length > limits.record_bytes:
        yield Reject(file, offset, f"a record of more than {limits.record_bytes} bytes")
        if stream.skip(length) < length:
            raise Corrupt("a truncated WARC record", offset)
        return
    payload = stream.read(length)
    if len(payload) < length:
        raise Corrupt("a truncated WARC record", offset)
    if (end := stream.read(4)) not in (b"\r\n\r\n", b""):
        # Its end is elsewhere: the next record may begin inside what was read.
        if len(payload) <= _RESCAN_BYTES:
            stream.unread(payload + end)
        raise Corrupt("a WARC record that does not end where its length says", offset)
    url = fields.get(b"warc-target-uri", b"").strip(b"<>").decode("utf-8", "replace")
    date = fields.get(b"warc-date", b"").decode("ascii", "replace")
    about = {"date": date} if date else {}
    if kind == b"conversion":
        try:
            yield Record(file, offset, Form.text, utf8(payload), url=url, about=about)
        except ValueError as error:
            yield Reject(file, offset, str(error))
    elif kind == b"resource":
        content_type = fields.get(b"content-type", b"").decode("ascii", "replace")
        yield _page(payload, content_type, file, offset, url, about)
    else:
        yield _response(header, payload, file, offset, url, about, limits)


def _response(
    header: bytes, payload: bytes, file: str, offset: int, url: str, about: dict[str, str], limits: Limits
) -> Record | Reject:
    warc = need("fastwarc.warc")
    try:
        records = warc.ArchiveIterator(
            io.BytesIO(header + payload + b"\r\n\r\n"), parse_http=True, auto_decode="all", fsspec_args=False
        )
        record = next(iter(records), None)
        if record is None or not record.is_http_parsed:
            return Reject(file, offset, "no HTTP answer in a response")
        status = record.http_headers.status_code
        content = record.reader.read(limits.record_bytes + 1)
        content_type = record.http_content_type or ""
        charset = record.http_charset or ""
    except (OSError, ValueError, RuntimeError, UnicodeError) as error:
        return Reject(file, offset, f"no HTTP answer in a response: {' '.join(str(error).split())[:100]}")
    if len(content) > limits.record_bytes:
        return Reject(file, offset, f"a page of more than {limits.record_bytes} bytes")
    if status != 200:
        return Record(file, offset, Form.other, b"", url=url, about={"rule": "http_status"})
    return _page(bytes(content), content_type, file, offset, url, about, charset)


def _page(
    content: bytes, content_type: str, file: str, offset: int, url: str, about: dict[str, str], charset: str = ""
) -> Record:
    name = content_type.partition(";")[0].strip().lower()
    if name not in _HTML:
        return Record(file, offset, Form.other, b"", url=url, about={"rule": "content_type"})
    return Record(file, offset, Form.html, content, url=url, charset=charset, about=dict(about))
