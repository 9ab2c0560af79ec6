"""Reading shards: every read returns the tokens asked for, or is an error."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isthmus.data.shards.index import ShardIndex, read_index
from isthmus.errors import UserError

Tokens = NDArray[np.generic]


class Shard:
    """One `.bin` and `.idx`, opened when first read.

    Args:
        prefix: the path without `.bin` and `.idx`.

    Raises:
        UserError: a file is missing, or the two do not fit together.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.bin_path, self.idx_path = bin_path(prefix), idx_path(prefix)
        try:
            self.bin_bytes = self.bin_path.stat().st_size
        except OSError as error:
            raise UserError(
                f"cannot be read: {error.strerror}", where=str(self.bin_path), fix="give a shard's prefix"
            ) from None
        self.index: ShardIndex = read_index(self.idx_path, self.bin_bytes)
        self.dtype = self.index.dtype
        self._file: int | None = None

    def __len__(self) -> int:
        """Return the number of documents."""
        return len(self.index.documents) - 1

    def document(self, number: int) -> Tokens:
        """Return the tokens of a document, those of all its sequences."""
        if not 0 <= number < len(self):
            raise IndexError(f"document {number} of {len(self)}")
        first, last = (int(value) for value in self.index.documents[number : number + 2])
        parts = [self.sequence(sequence) for sequence in range(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, self.dtype), *parts])

    def sequence(self, number: int) -> Tokens:
        return self._read(int(self.index.offsets[number]), int(self.index.lengths[number]))

    def documents(self) -> Iterator[Tokens]:
        return (self.document(number) for number in range(len(self)))

    def tokens(self, start: int, stop: int) -> Tokens:
        """Return the tokens [start, stop) of the `.bin` file, whatever documents they belong to."""
        if not 0 <= start <= stop <= self.bin_bytes // self.dtype.itemsize:
            raise IndexError(f"tokens {start} to {stop} of {self.bin_bytes // self.dtype.itemsize}")
        return self._read(start * self.dtype.itemsize, stop - start)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "Shard":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, offset: int, count: int) -> Tokens:
        if self._file is None:
            self._file = os.open(self.bin_path, os.O_RDONLY)
        wanted = count * self.dtype.itemsize
        parts = []
        while wanted:
            part = os.pread(self._file, wanted, offset)
            if not part:
                # Megatron's reader would hand out whatever the buffer held before.
                raise UserError(
                    f"ends {wanted} bytes before the end of a read at {offset}",
                    where=str(self.bin_path),
                    fix="it was truncated after it was opened; copy it anew",
                )
            parts.append(part)
            offset, wanted = offset + len(part), wanted - len(part)
        return np.frombuffer(b"".join(parts), dtype=self.dtype)


def bin_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".idx")
