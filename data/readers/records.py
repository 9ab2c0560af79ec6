"""What readers yield: records, and rejects for what could not be read."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from isthmus.errors import UserError


class Form(Enum):
    """What a record's content is."""

    html = "html"  # bytes of a page
    text = "text"
    captions = "captions"  # bytes of a caption or transcript file
    other = "other"  # nothing to prepare; `about["rule"]` says why


@dataclass(frozen=True, slots=True)
class Record:
    """One page, text or caption track, and where it lay.

    `file` is relative to what is fixed of the source's path; `offset` is a byte of it, a row or a member's number.
    """

    file: str
    offset: int
    form: Form
    content: str | bytes
    url: str = ""
    charset: str = ""
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """Input that could not be read: where it lies, why, and how many records it stands for."""

    file: str
    offset: int
    reason: str
    records: int = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What one record may cost, in terms that are the same on every machine.

    Args:
        record_bytes: largest page, file or archive member.
        line_bytes: longest line of a JSONL file.
        expansion: how many times larger than its compressed form a stream may become, beyond its first 64 MB.
    """

    record_bytes: int = 16_000_000
    line_bytes: int = 16_000_000
    expansion: int = 300


class Corrupt(Exception):
    """A stream that cannot be read on from where it is."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.reason, self.offset = reason, offset


def utf8(content: bytes) -> str:
    """Return UTF-8 text without its byte-order mark.

    Raises:
        ValueError: the bytes are no UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid encoding: no UTF-8 at byte {error.start}") from None


def check_limits(limits: Limits) -> None:
    """Refuse limits that would let nothing through."""
    for name in Limits.__slots__:
        if getattr(limits, name) < 1:
            raise UserError(f"is {getattr(limits, name)}", where=f"data.limits.{name}", fix="it starts at 1")
