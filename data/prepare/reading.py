"""The records of a unit of work, file by file."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO, Protocol, cast

from isthmus.data.prepare.config import LimitsConfig, PrepareSource, SourceKind
from isthmus.data.prepare.units import Segment, Unit
from isthmus.data.readers.archives import read_single, read_tar, read_zip
from isthmus.data.readers.columns import read_parquet
from isthmus.data.readers.files import InputFile, open_file
from isthmus.data.readers.jsonl import read_jsonl
from isthmus.data.readers.records import Form, Limits, Record, Reject
from isthmus.data.readers.streams import Stream
from isthmus.data.readers.warc import read_warc
from isthmus.data.transcripts.document import Video
from isthmus.data.transcripts.tracks import unused_tracks

_SINGLE = {"html": Form.html, "text": Form.text, "captions": Form.captions}


class SegmentWatch(Protocol):
    """What stands by while a segment is read, whose libraries may hang or crash as those of pages may."""

    def begins(self, segment: bytes) -> bool:
        """Say whether to read the segment with this hash: not if it ended a process before."""

    def watch(self, segment: bytes) -> AbstractContextManager[None]: ...


class Unwatched:
    """Reads everything, and lets what happens happen."""

    def begins(self, segment: bytes) -> bool:
        return True

    def watch(self, segment: bytes) -> AbstractContextManager[None]:
        return nullcontext()


class RecordReader:
    """Yields what a unit holds, in the order of its segments.

    Args:
        on_bytes: called with the number of bytes that were read since the last call.
    """

    def __init__(
        self,
        source: PrepareSource,
        limits: LimitsConfig,
        videos: dict[str, Video],
        *,
        keep_translations: bool,
        on_bytes: Callable[[int], None],
        watch: SegmentWatch | None = None,
    ) -> None:
        self._source, self._watch = source, watch or Unwatched()
        self._limits = Limits(limits.record_bytes, limits.line_bytes, limits.expansion)
        self._languages = {name: video.language for name, video in videos.items() if video.language}
        self._keep_translations = keep_translations
        self._on_bytes = on_bytes

    def records(self, unit: Unit) -> Iterator[Record | Reject]:
        names = [segment.file.identity for segment in unit.segments if segment.file.format == "captions"]
        unused = self._unused(names)
        for segment in unit.segments:
            name = segment.file.identity
            if name in unused:
                yield Record(name, 0, Form.other, b"", about={"rule": unused[name]})
                continue
            key = _segment_hash(unit.source, segment)
            if not self._watch.begins(key):
                yield Reject(name, segment.start, "reading it took too much CPU time or ended a process")
                continue
            with open_file(segment.file.url) as raw:
                counted = cast(BinaryIO, io.BufferedReader(_Counted(raw, self._on_bytes), 1 << 18))
                entries = self._segment(segment, counted)
                while True:
                    with self._watch.watch(key):
                        entry = next(entries, None)
                    if entry is None:
                        break
                    yield entry

    def _segment(self, segment: Segment, raw: BinaryIO) -> Iterator[Record | Reject]:
        file, limits = segment.file, self._limits
        fields: dict[str, Any] = {
            "text_field": self._source.text_field,
            "about_fields": self._source.about_fields,
        }
        if file.format == "parquet":
            groups = None if segment.stop is None else (segment.start, segment.stop)
            yield from read_parquet(raw, file.identity, limits, groups=groups, **fields)
        elif file.format == "zip":
            yield from self._archive(
                file, read_zip(raw, file.identity, limits), lambda: read_zip(raw, file.identity, limits)
            )
        elif file.format == "tar":

            def read() -> Iterator[Record | Reject]:
                raw.seek(0)
                return read_tar(Stream(raw, limits, name=file.identity), file.identity, limits)

            yield from self._archive(file, read(), read)
        else:
            start = max(0, segment.start - 1)
            stream = Stream(raw, limits, start=start, name=file.identity)
            if file.format == "warc":
                yield from read_warc(stream, file.identity, limits)
            elif file.format == "jsonl":
                yield from read_jsonl(stream, file.identity, limits, stop=segment.stop, **fields)
            else:
                yield read_single(stream, file.identity, limits, _SINGLE[file.format])

    def _archive(
        self, file: InputFile, members: Iterator[Record | Reject], again: Callable[[], Iterator[Record | Reject]]
    ) -> Iterator[Record | Reject]:
        """Yield an archive's members; tracks are chosen when the names of all are known."""
        if self._source.kind is not SourceKind.transcripts:
            yield from members
            return
        names = [entry.file for entry in members if isinstance(entry, Record) and entry.form is Form.captions]
        unused = self._unused(names)
        for entry in again():
            if isinstance(entry, Record) and entry.file in unused:
                yield Record(entry.file, entry.offset, Form.other, b"", about={"rule": unused[entry.file]})
            else:
                yield entry

    def _unused(self, names: list[str]) -> dict[str, str]:
        return unused_tracks(names, self._languages, keep_translations=self._keep_translations)


def _segment_hash(source: str, segment: Segment) -> bytes:
    place = f"segment\0{source}\0{segment.file.identity}\0{segment.start}"
    return hashlib.blake2b(place.encode(), digest_size=16).digest()


class _Counted(io.RawIOBase):
    """Reports what is read of a file."""

    def __init__(self, raw: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._raw, self._on_bytes = raw, on_bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        content = self._raw.read(len(buffer))
        buffer[: len(content)] = content
        self._on_bytes(len(content))
        return len(content)
