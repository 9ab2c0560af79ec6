"""A source's tokens in a row: in an array, or in the shards of a dataset; windows of it by their first token."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isthmus.data.reading import BadRead, File, Reader
from isthmus.data.shards.index import ShardIndex, read_index

Tokens = NDArray[Any]


@dataclass(frozen=True)
class DocumentSpan:
    """The tokens [start, stop) of a stream that a document takes, and what is known of it."""

    start: int
    stop: int
    about: dict[str, Any]


class Stream(Protocol):
    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int:
        """Return the number of tokens."""
        ...

    def read(self, starts: Sequence[int], rows: Tokens) -> dict[int, str]:
        """Fill each row with the tokens from its start on, going on at token 0 after the last.

        Returns:
            The rows that could not be read, and why; they hold zeros.
        """
        ...

    def boundaries(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the first tokens of the documents that [start, stop) touches, and the end of the last."""
        ...

    def documents(self, start: int, stop: int) -> list[DocumentSpan]:
        """Return the documents that [start, stop) touches."""
        ...


class ArrayStream:
    """Documents in an array, the end-of-document token after each; `names` says where they came from."""

    def __init__(self, array: Tokens, lengths: NDArray[np.int64], names: Sequence[str] = ()) -> None:
        self.array, self._names = array, names
        self._starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def read(self, starts: Sequence[int], rows: Tokens) -> dict[int, str]:
        for row, start in zip(rows, starts, strict=True):
            piece = self.array[start : start + len(row)]
            row[: len(piece)] = piece
            if len(piece) < len(row):
                row[len(piece) :] = self.array[: len(row) - len(piece)]
        return {}

    def boundaries(self, start: int, stop: int) -> NDArray[np.int64]:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        return self._starts[first : last + 1]

    def documents(self, start: int, stop: int) -> list[DocumentSpan]:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        bounds = self.boundaries(start, stop).tolist()
        return [
            DocumentSpan(begin, end, {"document": self._names[first + number] if self._names else first + number})
            for number, (begin, end) in enumerate(pairwise(bounds))
        ]


@dataclass(frozen=True)
class Part:
    """One shard of a stream."""

    name: str
    file: File
    dtype: np.dtype
    documents: int
    folder: Path | None = None  # of the dataset, where it has lineage and lies on this machine

    @property
    def tokens(self) -> int:
        return self.file.bytes // self.dtype.itemsize

    @cached_property
    def index(self) -> ShardIndex:
        """Read the shard's index: where its documents are.

        Raises:
            UserError: it is damaged, or does not fit the `.bin`.
        """
        return read_index(Path(self.file.location).with_suffix(".idx"), self.file.bytes)

    def document_starts(self) -> NDArray[np.int64]:
        """Return the first token of each document, and the end of the last."""
        sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.index.lengths, dtype=np.int64)])
        return sums[self.index.documents]


class ShardStream:
    """The tokens [first, last) of shards that are read one after another, whatever documents they belong to."""

    def __init__(self, parts: Sequence[Part], reader: Reader, first: int = 0, last: int | None = None) -> None:
        self.parts, self.reader = list(parts), reader
        self._ends = np.cumsum([part.tokens for part in parts], dtype=np.int64).tolist()
        self.first, self.last = first, self._ends[-1] if last is None else last
        self._dtype = parts[0].dtype

    @property
    def dtype(self) -> np.dtype:
        return self._dtype

    def __len__(self) -> int:
        return self.last - self.first

    def view(self, first: int, last: int) -> "ShardStream":
        return ShardStream(self.parts, self.reader, self.first + first, self.first + last)

    def read(self, starts: Sequence[int], rows: Tokens) -> dict[int, str]:
        assert rows.dtype == self._dtype
        bad = {}
        size, width = self._dtype.itemsize, rows.shape[1]
        buffer = memoryview(rows.reshape(-1).view(np.uint8).data)
        read, parts, ends = self.reader.read, self.parts, self._ends
        for row, start in enumerate(starts):
            begin = self.first + start
            number = bisect_right(ends, begin)
            target = buffer[row * width * size : (row + 1) * width * size]
            try:
                if begin + width <= min(ends[number], self.last):
                    before = ends[number - 1] if number else 0
                    read(parts[number].file, (begin - before) * size, target)
                else:
                    self._read_across(begin, target, size)
            except BadRead as error:
                bad[row] = str(error)
                rows[row] = 0
        return bad

    def boundaries(self, start: int, stop: int) -> NDArray[np.int64]:
        spans = self._spans(start, stop)
        return np.array([*(span.start for span in spans), spans[-1].stop], dtype=np.int64)

    def documents(self, start: int, stop: int) -> list[DocumentSpan]:
        from isthmus.data.shards.lineage import read_lineage
        from isthmus.data.shards.manifest import SHARD_SUFFIX, read_shard_manifest

        found = []
        for span in self._spans(start, stop):
            part, number = span.about["part"], span.about["document"]
            about = {"shard": part.name, "document": number}
            if part.folder is not None:
                manifest = read_shard_manifest(part.folder / f"{part.name}{SHARD_SUFFIX}")
                about["lineage"] = read_lineage(part.folder, manifest, number)
            found.append(DocumentSpan(span.start, span.stop, about))
        return found

    def _spans(self, start: int, stop: int) -> list[DocumentSpan]:
        spans = []
        first, last = self.first + start, self.first + stop
        for number, part in enumerate(self.parts):
            before = self._ends[number - 1] if number else 0
            if before >= last or self._ends[number] <= first:
                continue
            starts = part.document_starts()
            low = max(0, int(np.searchsorted(starts, first - before, side="right")) - 1)
            for document in range(low, len(starts) - 1):
                begin, end = int(starts[document]) + before, int(starts[document + 1]) + before
                if begin >= last:
                    break
                spans.append(DocumentSpan(begin - self.first, end - self.first, {"part": part, "document": document}))
        return spans

    def _read_across(self, begin: int, target: memoryview, size: int) -> None:
        """Read a window that goes on in the next shard, or after the last token at the first."""
        done = 0
        while done < len(target):
            number = bisect_right(self._ends, begin)
            before = self._ends[number - 1] if number else 0
            part = min(len(target) - done, (min(self._ends[number], self.last) - begin) * size)
            self.reader.read(self.parts[number].file, (begin - before) * size, target[done : done + part])
            done += part
            begin += part // size
            if begin == self.last:
                begin = self.first
