"""MinHash signatures of word n-grams (Broder 1997): integer arithmetic only, so every machine gets the same bits.

Each of the H functions is h -> (a h + b) mod 2^64 of a 64-bit shingle hash, of which the upper 32 bits are compared
(multiply-add-shift, Dietzfelbinger 1996). Shingles of lower-case words without symbols; digits count as equal.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from isthmus.data.extras import need
from isthmus.data.filters.text import mix

_WORD = re.compile(r"\w+")
_DIGITS = re.compile(r"\d+")
_CHUNK = 512  # shingles hashed at once: 512 x 112 numbers stay in the processor's cache

Signature = NDArray[np.uint32]


class MinHasher:
    """Computes signatures of `bands` x `rows` numbers."""

    def __init__(self, *, bands: int, rows: int, ngram: int) -> None:
        self.bands, self.rows, self.ngram = bands, rows, ngram
        self._factors, self._terms = _functions(bands * rows)

    def signature(self, text: str) -> Signature:
        """Return the signature; a text shorter than one n-gram is one shingle."""
        shingles = np.unique(shingle_hashes(words_of(text), self.ngram))
        lowest = np.full(len(self._factors), np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(shingles), _CHUNK):
            part = shingles[start : start + _CHUNK, None] * self._factors + self._terms
            np.minimum(lowest, part.min(axis=0), out=lowest)
        return (lowest >> np.uint64(32)).astype(np.uint32)

    def band_hashes(self, signatures: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Return a 64-bit number for each band of each signature: [bands, documents]."""
        parts = signatures.reshape(len(signatures), self.bands, self.rows).astype(np.uint64)
        hashes = np.zeros((len(signatures), self.bands), dtype=np.uint64)
        for row in range(self.rows):
            hashes = mix(hashes ^ parts[:, :, row])
        return np.ascontiguousarray(hashes.T)


def words_of(text: str) -> list[str]:
    return _WORD.findall(_DIGITS.sub("0", text.lower()))


def shingle_hashes(words: Sequence[str], ngram: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each run of `ngram` words (of all words, where they are fewer)."""
    if not words:
        return np.zeros(1, dtype=np.uint64)
    known: dict[str, int] = {}
    digest = need("xxhash").xxh3_64_intdigest
    for word in words:
        if word not in known:
            known[word] = digest(word.encode("utf-8", "surrogatepass"))
    hashes = np.fromiter((known[word] for word in words), dtype=np.uint64, count=len(words))
    return combine(hashes, min(ngram, len(words)))


def combine(hashes: NDArray[np.uint64], ngram: int) -> NDArray[np.uint64]:
    """Return a hash of each run of `ngram` hashes."""
    count = len(hashes) - ngram + 1
    combined = hashes[:count].copy()
    for place in range(1, ngram):
        combined = combined * np.uint64(0xD6E8FEB86659FD93) + hashes[place : place + count]
        combined ^= combined >> np.uint64(32)
    return mix(combined)


@lru_cache(maxsize=8)
def _functions(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return odd factors and terms that depend on nothing but their number."""
    stream = hashlib.shake_256(b"isthmus minhash 1").digest(16 * count)
    numbers = np.frombuffer(stream, dtype="<u8").astype(np.uint64)
    return numbers[:count] | np.uint64(1), numbers[count:]
