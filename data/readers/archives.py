"""Single files, and files inside zip and tar archives."""

import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from isthmus.data.readers.files import format_of
from isthmus.data.readers.records import Corrupt, Form, Limits, Record, Reject, utf8
from isthmus.data.readers.streams import Stream

_FORMS = {"html": Form.html, "text": Form.text, "captions": Form.captions}


def read_single(stream: Stream, file: str, limits: Limits, form: Form, member: int = 0) -> Record | Reject:
    """Return a file that is one document as its record."""
    try:
        content = stream.read(limits.record_bytes + 1)
    except Corrupt as error:
        return Reject(file, member, error.reason)
    return _record(content, file, member, limits, form)


def read_zip(raw: BinaryIO, file: str, limits: Limits) -> Iterator[Record | Reject]:
    """Yield the members of a zip archive by name; offsets are members' numbers in the archive's directory."""
    try:
        archive = zipfile.ZipFile(raw)
        members = sorted(enumerate(archive.infolist()), key=lambda entry: (entry[1].filename, entry[0]))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        yield Reject(file, 0, f"corrupt zip: {error}")
        return
    for number, member in members:
        if not format_of(member.filename) or member.is_dir():  # a damaged directory may hold an empty name
            continue
        name = f"{file}/{_clean(member.filename)}"
        try:
            with archive.open(member) as content:
                yield _member(content.read(limits.record_bytes + 1), name, number, limits, member.filename)
        except Exception as error:  # zipfile raises zlib.error, struct.error, RuntimeError, EOFError and more
            yield Reject(name, number, f"corrupt zip: {' '.join(str(error).split())[:100] or type(error).__name__}")


def read_tar(stream: Stream, file: str, limits: Limits) -> Iterator[Record | Reject]:
    """Yield the members of a tar archive in the order of the archive; offsets are members' numbers."""
    number = 0
    readable: Any = _Readable(stream)
    try:
        with tarfile.open(fileobj=readable, mode="r|", bufsize=1 << 16) as archive:
            for number, member in enumerate(archive):
                if member.isfile() and format_of(member.name):
                    name = f"{file}/{_clean(member.name)}"
                    if member.size > limits.record_bytes:
                        yield Reject(name, number, f"a member of more than {limits.record_bytes} bytes")
                        continue
                    content: Any = archive.extractfile(member)
                    yield _member(content.read(), name, number, limits, member.name)
    except Corrupt as error:
        yield Reject(file, number, error.reason)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        yield Reject(file, number, f"corrupt tar: {' '.join(str(error).split())[:100]}")


class _Readable:
    """What tarfile asks of a file."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read(size)


def _member(content: bytes, name: str, number: int, limits: Limits, member: str) -> Record | Reject:
    form = _FORMS.get(format_of(member))
    if form is None:
        return Reject(name, number, "an archive may hold pages, texts and captions, not other archives")
    return _record(content, name, number, limits, form)


def _record(content: bytes, file: str, offset: int, limits: Limits, form: Form) -> Record | Reject:
    if len(content) > limits.record_bytes:
        return Reject(file, offset, f"a file of more than {limits.record_bytes} bytes")
    if form is not Form.text:
        return Record(file, offset, form, content)
    try:
        return Record(file, offset, form, utf8(content))
    except ValueError as error:
        return Reject(file, offset, str(error))


def _clean(name: str) -> str:
    return name.encode("utf-8", "replace").decode().lstrip("/")
