"""Where a shard's documents begin, looked up in its index one at a time: nothing is read whole, near or far."""

import struct
from bisect import bisect_right

from isthmus.data.reading import BadRead, File, Reader
from isthmus.data.shards.index import HEADER, MAGIC, VERSION


class Boundaries:
    """The documents of a shard whose sequences lie one after another.

    Args:
        index: its `.idx` file.
        binary: its `.bin` file.

    Raises:
        BadRead: the index cannot be read, or does not belong to the `.bin` file.
    """

    def __init__(self, index: File, binary: File, token_bytes: int, reader: Reader) -> None:
        self._index, self._reader, self._token_bytes = index, reader, token_bytes
        self._tokens = binary.bytes // token_bytes
        head = bytearray(HEADER.size)
        reader.read(index, 0, memoryview(head))
        magic, version, _, self._sequences, boundaries = HEADER.unpack(head)
        if magic != MAGIC or version != VERSION or boundaries < 1:
            raise BadRead(f"{index.location} is no Megatron index")
        self._offsets = HEADER.size + 4 * self._sequences
        self._documents = self._offsets + 8 * self._sequences
        self.count = boundaries - 1

    def start(self, document: int) -> int:
        """Return the first token of a document; of the one after the last, the end of all."""
        sequence = self._number(self._documents + 8 * document)
        if sequence == self._sequences:
            return self._tokens
        place = self._number(self._offsets + 8 * sequence) if 0 <= sequence < self._sequences else -1
        if not 0 <= place <= self._tokens * self._token_bytes:
            raise BadRead(f"{self._index.location} is damaged: it has document {document} at byte {place}")
        return place // self._token_bytes

    def at(self, token: int) -> int:
        """Return the document that a token belongs to."""
        return bisect_right(range(self.count + 1), token, key=self.start) - 1

    def _number(self, place: int) -> int:
        buffer = bytearray(8)
        self._reader.read(self._index, place, memoryview(buffer))
        (number,) = struct.unpack("<q", buffer)
        return int(number)
