"""JSON lines with a text field, whole or a range of bytes."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from isthmus.data.readers.records import Corrupt, Form, Limits, Record, Reject, utf8
from isthmus.data.readers.streams import Stream

_URL_FIELDS = ("url", "uri", "source_url")


def read_jsonl(
    stream: Stream,
    file: str,
    limits: Limits,
    *,
    text_field: str = "text",
    about_fields: Sequence[str] = (),
    stop: int | None = None,
) -> Iterator[Record | Reject]:
    """Yield the lines that begin before byte `stop`; a stream that starts inside a line passes over its rest.

    Offsets are bytes of the decompressed file.
    """
    if stream.offset > 0:
        # The byte before the range tells whether the range begins with a line; its line is the range's before.
        stream.line(limits.line_bytes)
    while True:
        offset = stream.offset
        if stop is not None and offset >= stop:
            return
        try:
            line, too_long = stream.line(limits.line_bytes)
        except Corrupt as error:
            yield Reject(file, error.offset, error.reason)
            if not stream.resume():
                return
            continue
        if not line:
            return
        if too_long:
            yield Reject(file, offset, f"a line of more than {limits.line_bytes} bytes")
        elif line.strip():
            yield parse_line(line, file, offset, text_field, about_fields)


def parse_line(line: bytes, file: str, offset: int, text_field: str, about_fields: Sequence[str]) -> Record | Reject:
    """Return the record of one line, or why it is none."""
    try:
        row = json.loads(utf8(line))
    except (ValueError, RecursionError) as error:
        reason = str(error) if "encoding" in str(error) else "no JSON"
        return Reject(file, offset, reason)
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        return Reject(file, offset, f"no text in the field '{text_field}'")
    try:
        text.encode()
    except UnicodeEncodeError:
        return Reject(file, offset, "invalid encoding: half of a surrogate pair")
    record = text_record(text, file, offset, row, about_fields)
    record.about.update({name: row[name] for name in about_fields if isinstance(row.get(name), list | dict)})
    return record


def text_record(text: str, file: str, offset: int, row: dict[str, Any], about_fields: Sequence[str]) -> Record:
    """Return a record of text with the plain values that its row says about it."""
    about = {name: row[name] for name in about_fields if isinstance(row.get(name), str | int | float)}
    url = next((row[name] for name in _URL_FIELDS if isinstance(row.get(name), str)), "")
    return Record(file, offset, Form.text, text, url=url.encode("utf-8", "replace").decode(), about=about)
