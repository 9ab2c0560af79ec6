"""Windows of whole documents, by number: a table that was written with the shards says where their pieces are."""

import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isthmus.data.reading import BadRead, File, Reader
from isthmus.data.shards.packing import HEADER, PIECE, capacity
from isthmus.data.streams import DocumentSpan, Extent, Filled, Part, Tokens

_BOUNDS = struct.Struct("<qq")


@dataclass(frozen=True)
class Table:
    """A shard's table, and what its manifest says of it."""

    part: Part
    file: File
    windows: int
    pieces: int
    tokens: int


class PackedStream:
    """The windows of all shards of a source. What is held out leaves padding in its place.

    Args:
        sequence_length: that the tables were written for.
        held_out: runs of documents that are not to be read.
    """

    def __init__(
        self, tables: Sequence[Table], held_out: Sequence[Extent], sequence_length: int, reader: Reader
    ) -> None:
        self.tables, self.reader, self.sequence_length = list(tables), reader, sequence_length
        self._ends = np.cumsum([table.windows for table in tables], dtype=np.int64).tolist()
        self._held_out = {number: _runs(table.part, held_out) for number, table in enumerate(tables)}
        self._tokens = sum(table.tokens for table in tables) - sum(extent.last - extent.first for extent in held_out)

    @property
    def dtype(self) -> np.dtype:
        return self.tables[0].part.dtype

    def __len__(self) -> int:
        """Return the number of tokens in all windows, without padding."""
        return self._tokens

    def windows(self, length: int) -> int:
        assert length == self.sequence_length
        return int(self._ends[-1])

    @property
    def fill(self) -> float:
        """Return which part of the windows holds tokens."""
        return self._tokens / (capacity(self.sequence_length) * max(self._ends[-1], 1))

    def read(self, places: Sequence[int], rows: Tokens) -> Filled:
        assert rows.dtype == self.dtype
        bad: dict[int, str] = {}
        ends: list[list[int]] = []
        size, width = rows.dtype.itemsize, rows.shape[1]
        buffer = memoryview(rows.reshape(-1).view(np.uint8).data)
        for row, window in enumerate(places):
            begin = row * width * size
            stop, at, bounds = begin + width * size, begin, []
            try:
                file, pieces = self._pieces(window)
                for first, tokens in pieces:
                    self.reader.read(file, first * size, buffer[at : at + tokens * size])
                    at += tokens * size
                    bounds.append((at - begin) // size)
            except BadRead as error:
                bad[row], at, bounds = str(error), begin, []
            if at < stop:
                rows[row, (at - begin) // size :] = 0
            ends.append(bounds)
        return Filled(bad, ends)

    def documents(self, place: int, length: int) -> list[DocumentSpan]:
        number = bisect_right(self._ends, place)
        part = self.tables[number].part
        bounds = part.boundaries(self.reader)
        return [
            DocumentSpan(first, first + tokens, part.about(bounds.at(first)))
            for first, tokens in self._pieces(place)[1]
        ]

    def _pieces(self, window: int) -> tuple[File, list[tuple[int, int]]]:
        """Return the file and the first token and tokens of each piece of a window, checked, so that a damaged table
        is an error and no wrong read."""
        number = bisect_right(self._ends, window)
        table = self.tables[number]
        nth = window - (self._ends[number - 1] if number else 0)
        bounds = bytearray(_BOUNDS.size)
        self.reader.read(table.file, HEADER.size + 8 * nth, memoryview(bounds))
        begin, end = _BOUNDS.unpack(bounds)
        room = capacity(self.sequence_length)
        if not 0 <= begin < end <= min(table.pieces, begin + room):
            raise BadRead(f"{table.file.location} is damaged: window {nth} has pieces {begin} to {end}")
        content = bytearray((end - begin) * PIECE.itemsize)
        place = HEADER.size + 8 * (table.windows + 1) + begin * PIECE.itemsize
        self.reader.read(table.file, place, memoryview(content))
        pieces: list[tuple[int, int]] = np.frombuffer(content, dtype=PIECE).tolist()
        total = 0
        for first, tokens in pieces:
            total += tokens
            if tokens < 1 or first < 0 or first + tokens > table.part.tokens or total > room:
                raise BadRead(f"{table.file.location} is damaged: window {nth} has {tokens} tokens from {first} on")
        for held_first, held_last in self._held_out[number]:
            pieces = [
                (first, min(tokens, held_first - first)) if first < held_first else (first, tokens)
                for first, tokens in pieces
                if not held_first <= first < held_last
            ]
        return table.part.file, pieces


def _runs(part: Part, held_out: Sequence[Extent]) -> list[tuple[int, int]]:
    return [(extent.first, extent.last) for extent in held_out if extent.part is part]
