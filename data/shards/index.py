"""Megatron's `.idx` file: read with every length checked, written atomically.

Layout (Megatron-core 0.16, `core/datasets/indexed_dataset.py`), little-endian: 9 bytes of magic, u64 version, u8 dtype
code, u64 sequences, u64 length of the document array; int32 lengths, int64 byte offsets, int64 document boundaries that
begin with 0, and optionally an int8 mode for each sequence.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import UserError
from isthmus.files import write_atomically

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
LARGEST_UINT16_VOCABULARY = 65_500  # Megatron's own limit, a little under 2^16


@dataclass(frozen=True)
class ShardIndex:
    """Where the sequences and documents of a `.bin` file are.

    `lengths` are tokens per sequence, `offsets` bytes; document d is the sequences [documents[d], documents[d + 1]).
    """

    dtype: np.dtype
    lengths: NDArray[np.int32]
    offsets: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def document_starts(self) -> NDArray[np.int64]:
        """Return the first token of each document, and the end of the last."""
        sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.lengths, dtype=np.int64)])
        return sums[self.documents]

    @property
    def contiguous(self) -> bool:
        """Say whether the sequences lie one after another, without gaps, so that a window may run over them."""
        sums = np.cumsum(self.lengths, dtype=np.int64) * self.dtype.itemsize
        return bool(np.array_equal(self.offsets, sums - self.lengths * np.int64(self.dtype.itemsize)))


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type that Megatron chooses for a vocabulary of this size."""
    return np.dtype("<u2") if vocab_size < LARGEST_UINT16_VOCABULARY else np.dtype("<i4")


def write_index(path: Path, dtype: np.dtype, lengths: NDArray[np.int32]) -> None:
    """Write the index of sequences that lie one after another, each a document of its own."""
    lengths = np.ascontiguousarray(lengths, dtype="<i4")
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    offsets = np.concatenate([np.zeros(1, dtype="<i8"), ends[:-1]]) if len(lengths) else np.zeros(0, dtype="<i8")
    documents = np.arange(len(lengths) + 1, dtype="<i8")
    header = HEADER.pack(MAGIC, VERSION, _CODES[dtype], len(lengths), len(documents))
    body = (lengths.tobytes(), offsets.astype("<i8").tobytes(), documents.tobytes())
    write_atomically(path, header + b"".join(body))


def read_index(path: Path, bin_bytes: int) -> ShardIndex:
    """Read and check an index against the size of its `.bin` file.

    Raises:
        UserError: the file is missing or is no index of version 1, is shorter or longer than its counts say, or points
            outside the `.bin` file.
    """
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        head = raw[: HEADER.size].tobytes()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix="give the prefix of a .bin and .idx") from None
    if len(head) < HEADER.size or head[:9] != MAGIC:
        raise UserError("is no Megatron index", where=str(path), fix="give the prefix of a .bin and .idx")
    _, version, code, sequences, boundaries = HEADER.unpack(head)
    if version != VERSION or code not in DTYPES:
        raise UserError(f"has version {version}, dtype code {code}", where=str(path), fix="only version 1 is known")
    plain = HEADER.size + 12 * sequences + 8 * boundaries
    if len(raw) not in (plain, plain + sequences):
        raise _damaged(path, f"has {len(raw)} bytes where its counts make {plain} (or {plain + sequences} with modes)")
    at = HEADER.size
    lengths = raw[at : at + 4 * sequences].view("<i4")
    offsets = raw[at + 4 * sequences : at + 12 * sequences].view("<i8")
    documents = raw[at + 12 * sequences : plain].view("<i8")
    dtype = DTYPES[code]
    if boundaries < 1 or documents[0] != 0 or documents[-1] != sequences or np.any(np.diff(documents) < 0):
        raise _damaged(path, "has document boundaries that do not rise from 0 to the number of sequences")
    if sequences:
        if int(lengths.min()) < 0 or int(offsets.min()) < 0 or np.any(offsets % dtype.itemsize):
            raise _damaged(path, "has negative lengths, or offsets between tokens")
        ends = offsets + lengths.astype(np.int64) * dtype.itemsize
        if int(ends.max()) > bin_bytes:
            raise _damaged(path, f"points to byte {int(ends.max())} of a .bin file of {bin_bytes} bytes")
    return ShardIndex(dtype, lengths, offsets, documents)


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        what, where=str(path), fix="one of the two files is truncated or belongs to another; copy both anew"
    )
