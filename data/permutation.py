"""Keyed permutations of whole numbers, computed for many at once and in any order: no table, no memory.

All arithmetic is on unsigned 64-bit arrays, so it is exact and the same on every machine.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Unsigned = NDArray[np.uint64]
Signed = NDArray[np.int64]

_ROUNDS = 6  # four make a pseudorandom permutation (Luby and Rackoff 1988); small domains are served better by six
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: splitmix64's increment
_INCREMENTS = [np.uint64(number * _GOLDEN % 2**64) for number in range(1, _ROUNDS + 1)]
_TAIL, _CHUNKS, _GROUP = (np.uint64(number) for number in (0x7461696C, 0x6368756E, 0x67726F75))


def key_of(*words: object) -> np.uint64:
    """Return a 64-bit key that depends on all words."""
    digest = hashlib.sha256("/".join(str(word) for word in words).encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def mix(value: Unsigned) -> Unsigned:
    """Return splitmix64's finalizer of each number (Steele, Lea and Flood 2014)."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)


def derive(key: Unsigned, number: Unsigned) -> Unsigned:
    """Return the key of a numbered child of each key."""
    return mix(key ^ mix(number + _INCREMENTS[0]))


def permute(index: Signed, size: Signed, key: Unsigned) -> Signed:
    """Return the image of each index under the permutation of range(size) that its key chooses.

    A Feistel network on the next even number of bits, applied again while the image lies outside the range (cycle
    walking; Black and Rogaway 2002), at most four times on average.

    Args:
        index: numbers from 0 to below their size.
        size: of the range, one for each index, below 2^53.
        key: of the permutation, one for each index.
    """
    # The exponent of a float is the number's bit length, exactly so below 2^53.
    bits = np.frexp((size - 1).astype(np.float64))[1]
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    bound = size.astype(np.uint64)
    keys = [mix(key + increment) for increment in _INCREMENTS]
    image = _feistel(index.astype(np.uint64), half, mask, keys)
    waiting = np.flatnonzero(image >= bound)
    while waiting.size:
        walked = _feistel(image[waiting], half[waiting], mask[waiting], [row[waiting] for row in keys])
        image[waiting] = walked
        waiting = waiting[walked >= bound[waiting]]
    return image.astype(np.int64)


def _feistel(index: Unsigned, half: Unsigned, mask: Unsigned, keys: list[Unsigned]) -> Unsigned:
    left, right = index >> half, index & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return left << half | right


@dataclass(frozen=True)
class Shuffle:
    """A two-level permutation of a source's windows: of chunks, then of the windows within a group of chunks.

    Reading in this order touches `group_chunks` chunks at a time, so that an object store is read in ranges. Where all
    windows fit into one group, it is a permutation of the windows and nothing else.
    """

    windows: int
    chunk_windows: int
    group_chunks: int

    def __call__(self, index: Signed, key: Unsigned) -> Signed:
        """Return which window comes at each place (0 to `windows` - 1) in the order that its key chooses."""
        full = np.full_like(index, self.windows)
        if self.windows <= self.chunk_windows * self.group_chunks:
            return permute(index, full, key)
        width, span = self.chunk_windows, self.chunk_windows * self.group_chunks
        chunks = -(-self.windows // width)
        # One chunk may be short. It takes a place of its own choice, and the others are permuted over the rest.
        short = self.windows - (chunks - 1) * width
        place = (derive(key, np.full_like(key, _TAIL)) % np.uint64(chunks)).astype(np.int64)
        its_group = place // self.group_chunks
        shifted = (index + width - short) // span
        later = shifted > its_group
        group = np.where(later, shifted, index // span)
        local = index - group * span + later * (width - short)
        has_short = group == its_group
        whole = np.minimum(self.group_chunks, chunks - group * self.group_chunks) - has_short
        inside = permute(local, whole * width + has_short * short, derive(key, group.astype(np.uint64) ^ _GROUP))
        number, offset = inside // width, inside % width
        position = group * self.group_chunks + number
        position += has_short & (position >= place)
        position -= position > place
        in_short = has_short & (number >= whole)
        position[in_short] = 0
        chunk = permute(position, np.full_like(index, chunks - 1), derive(key, np.full_like(key, _CHUNKS)))
        return np.where(in_short, (chunks - 1) * width + inside - whole * width, chunk * width + offset)
