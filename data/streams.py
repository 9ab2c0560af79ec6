"""A source's tokens in a row: in an array, or in the shards of a dataset; windows of it by their first token."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isthmus.data.boundaries import Boundaries
from isthmus.data.reading import BadRead, File, Reader
from isthmus.data.shards.lineage import read_row

Tokens = NDArray[Any]


@dataclass(frozen=True)
class DocumentSpan:
    """The tokens [start, stop) that a document takes of a stream (in packed windows: of its shard)."""

    start: int
    stop: int
    about: dict[str, Any]


@dataclass(frozen=True)
class Filled:
    """What became of rows: `bad` says which could not be read, and why; they hold zeros.

    `ends` has the place after each document of each row where windows are packed; what comes after the last is padding.
    """

    bad: dict[int, str]
    ends: list[list[int]] | None = None


class Stream(Protocol):
    """What samples are read from; a place is a token, or where windows are packed a window."""

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int:
        """Return the number of tokens."""
        ...

    def windows(self, length: int) -> int:
        """Return how many samples of `length` tokens and their successors an epoch holds."""
        ...

    def read(self, places: Sequence[int], rows: Tokens) -> Filled:
        """Fill each row with the tokens from its place on; after the last token of a stream comes its first."""
        ...

    def documents(self, place: int, length: int) -> list[DocumentSpan]:
        """Return the documents of a sample of `length` tokens."""
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

    def windows(self, length: int) -> int:
        return max(0, (len(self) - 1) // length)

    def read(self, places: Sequence[int], rows: Tokens) -> Filled:
        for row, start in zip(rows, places, strict=True):
            piece = self.array[start : start + len(row)]
            row[: len(piece)] = piece
            if len(piece) < len(row):
                row[len(piece) :] = self.array[: len(row) - len(piece)]
        return Filled({})

    def documents(self, place: int, length: int) -> list[DocumentSpan]:
        return [span for start, stop in _around(place, length, len(self)) for span in self._spans(start, stop)]

    def _spans(self, start: int, stop: int) -> Iterator[DocumentSpan]:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        for number, (begin, end) in enumerate(pairwise(self._starts[first : last + 1].tolist()), first):
            yield DocumentSpan(begin, end, {"document": self._names[number] if self._names else number})


@dataclass(frozen=True)
class Part:
    """One shard: its `.bin` and `.idx` files."""

    name: str
    file: File
    index: File
    dtype: np.dtype
    documents: int
    lineage: str | None = None  # the file that says where each document came from

    @property
    def tokens(self) -> int:
        return self.file.bytes // self.dtype.itemsize

    def boundaries(self, reader: Reader) -> Boundaries:
        return Boundaries(self.index, self.file, self.dtype.itemsize, reader)

    def about(self, document: int) -> dict[str, Any]:
        """Return what is known of a document."""
        about: dict[str, Any] = {"shard": self.name, "document": document}
        if self.lineage is not None:
            about["lineage"] = read_row(self.lineage, document)
        return about


@dataclass(frozen=True)
class Extent:
    """The tokens [first, last) of a shard."""

    part: Part
    first: int
    last: int


class ShardStream:
    """Extents of shards that are read one after another, whatever documents they belong to."""

    def __init__(self, extents: Sequence[Extent], reader: Reader, dtype: np.dtype) -> None:
        self.extents, self.reader, self._dtype = list(extents), reader, dtype
        self._ends = np.cumsum([extent.last - extent.first for extent in extents], dtype=np.int64).tolist()
        # What is to be added to a token's place in the stream to have its place in the shard.
        self._shifts = [extent.last - end for extent, end in zip(self.extents, self._ends, strict=True)]

    @property
    def dtype(self) -> np.dtype:
        return self._dtype

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def windows(self, length: int) -> int:
        return max(0, (len(self) - 1) // length)

    def read(self, places: Sequence[int], rows: Tokens) -> Filled:
        assert rows.dtype == self._dtype
        bad = {}
        size, width = self._dtype.itemsize, rows.shape[1]
        buffer = memoryview(rows.reshape(-1).view(np.uint8).data)
        read, extents, ends, shifts = self.reader.read, self.extents, self._ends, self._shifts
        for row, start in enumerate(places):
            number = bisect_right(ends, start)
            target = buffer[row * width * size : (row + 1) * width * size]
            try:
                if start + width <= ends[number]:
                    read(extents[number].part.file, (start + shifts[number]) * size, target)
                else:
                    self._read_across(start, target, size)
            except BadRead as error:
                bad[row] = str(error)
                rows[row] = 0
        return Filled(bad)

    def documents(self, place: int, length: int) -> list[DocumentSpan]:
        return [span for start, stop in _around(place, length, len(self)) for span in self._spans(start, stop)]

    def _spans(self, start: int, stop: int) -> Iterator[DocumentSpan]:
        for number in range(bisect_right(self._ends, start), len(self.extents)):
            extent, shift = self.extents[number], self._shifts[number]
            if extent.first - shift >= stop:
                return
            bounds = extent.part.boundaries(self.reader)
            document = bounds.at(max(start + shift, extent.first))
            begin = bounds.start(document)
            while begin < min(stop + shift, extent.last):
                end = bounds.start(document + 1)
                if end > begin:
                    first, last = max(begin, extent.first) - shift, min(end, extent.last) - shift
                    yield DocumentSpan(first, last, extent.part.about(document))
                document, begin = document + 1, end

    def _read_across(self, begin: int, target: memoryview, size: int) -> None:
        """Read a window that goes on in the next extent, or after the last token at the first."""
        done = 0
        while done < len(target):
            number = bisect_right(self._ends, begin)
            part = min(len(target) - done, (self._ends[number] - begin) * size)
            extent = self.extents[number]
            self.reader.read(extent.part.file, (begin + self._shifts[number]) * size, target[done : done + part])
            done += part
            begin += part // size
            if begin == len(self):
                begin = 0


def _around(start: int, length: int, total: int) -> list[tuple[int, int]]:
    """Return the ranges of a circle of `total` tokens that `length` tokens from `start` on are."""
    stop = start + length
    return [(start, stop)] if stop <= total else [(start, total), (0, stop - total)]
