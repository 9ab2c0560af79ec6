"""Pairs of documents that are to be one: equal texts, and candidates of a band whose signatures agree enough.

Works on one band and one range of its hashes at a time, so memory is bounded by the range and not by the corpus. What
is found does not depend on the number of ranges: equal hashes are always in the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isthmus.data.dedup.keys import BANDS, DOCUMENTS, PLACES, SIGNATURES, TEXTS, UnitKeys

DOCUMENTS_PER_RANGE = 4_000_000  # of one band: about 200 MB while it is sorted
_PAIRS_AT_ONCE = 100_000  # whose signatures are in memory: 2 x 448 bytes each
_LARGEST_ROUNDS = 64  # groups of one band hash in which more different texts remain are left at that

Pairs = NDArray[np.int64]  # [n, 2] document numbers


@dataclass(frozen=True)
class Corpus:
    """The units of a corpus in order; documents are numbered through."""

    units: tuple[UnitKeys, ...]
    starts: tuple[int, ...]  # number of each unit's first document, and the number of documents

    @staticmethod
    def of(prefixes: Sequence[Path], counts: Sequence[int]) -> "Corpus":
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return Corpus(tuple(UnitKeys(prefix) for prefix in prefixes), tuple(int(start) for start in starts))

    @property
    def documents(self) -> int:
        return self.starts[-1]

    @property
    def ranges(self) -> int:
        return max(1, -(-self.documents // DOCUMENTS_PER_RANGE))

    def gather(self, name: str, numbers: NDArray[np.int64]) -> NDArray[np.generic]:
        """Return the rows of an array of all units for these document numbers."""
        units = np.searchsorted(np.array(self.starts), numbers, side="right") - 1
        rows: NDArray[np.generic] | None = None
        for unit in np.unique(units):
            mine = units == unit
            part = self.units[unit].load(name)[numbers[mine] - self.starts[unit]]
            if rows is None:
                rows = np.empty((len(numbers), *part.shape[1:]), dtype=part.dtype)
            rows[mine] = part
        return rows if rows is not None else np.zeros((0, 2), dtype=np.uint64)


def equal_texts(corpus: Corpus, part: int, parts: int) -> Pairs:
    """Return a pair (lowest document hash, other) for every text that is there more than once."""
    low, high = _bounds(part, parts)
    numbers, hashes = [], []
    for unit, start in zip(corpus.units, corpus.starts, strict=False):
        texts = unit.load(TEXTS)
        inside = np.flatnonzero((texts[:, 0] >= low) & (texts[:, 0] <= high))
        numbers.append(inside + start)
        hashes.append(texts[inside])
    number, text = np.concatenate(numbers), np.concatenate(hashes)
    order = np.lexsort((text[:, 1], text[:, 0]))
    number, text = number[order], text[order]
    groups, members = _groups(number, (text[1:] != text[:-1]).any(axis=1))
    groups, members = _by_document_hash(corpus, groups, members)
    leaders = _leaders(groups, members)
    other = leaders != members
    return np.stack([leaders[other], members[other]], axis=1)


def near_duplicates(corpus: Corpus, band: int, part: int, parts: int, threshold: float) -> Pairs:
    """Return pairs of a band's candidates whose signatures agree in at least `threshold` of their numbers.

    In each group of equal band hashes, the document of the lowest hash is compared with the others; those that are
    unlike it form groups of their own, and so on.
    """
    low, high = _bounds(part, parts)
    numbers, hashes = [], []
    for unit, start in zip(corpus.units, corpus.starts, strict=False):
        found = unit.load(BANDS)[band]
        first = int(np.searchsorted(found, low, side="left"))
        last = int(np.searchsorted(found, high, side="right"))
        numbers.append(unit.load(PLACES)[band, first:last].astype(np.int64) + start)
        hashes.append(np.asarray(found[first:last]))
    number, hash_ = np.concatenate(numbers), np.concatenate(hashes)
    order = np.argsort(hash_, kind="stable")
    number, hash_ = number[order], hash_[order]
    groups, members = _groups(number, hash_[1:] != hash_[:-1])
    groups, members = _by_document_hash(corpus, groups, members)
    found_pairs = []
    for _ in range(_LARGEST_ROUNDS):
        if not len(groups):
            break
        leaders = _leaders(groups, members)
        other = np.flatnonzero(leaders != members)
        like = _alike(corpus, leaders[other], members[other], threshold)
        found_pairs.append(np.stack([leaders[other][like], members[other][like]], axis=1))
        rest = other[~like]
        groups, members = groups[rest], members[rest]
    return np.concatenate(found_pairs) if found_pairs else np.zeros((0, 2), dtype=np.int64)


def _alike(corpus: Corpus, left: NDArray[np.int64], right: NDArray[np.int64], threshold: float) -> NDArray[np.bool_]:
    """Compare signatures: the fraction of equal numbers estimates the Jaccard similarity."""
    parts = [np.zeros(0, dtype=bool)]
    for start in range(0, len(left), _PAIRS_AT_ONCE):
        stop = start + _PAIRS_AT_ONCE
        ours = corpus.gather(SIGNATURES, left[start:stop])
        equal = (ours == corpus.gather(SIGNATURES, right[start:stop])).sum(axis=1)
        parts.append(equal >= threshold * ours.shape[1])
    return np.concatenate(parts)


def _groups(numbers: NDArray[np.int64], new: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (group, number) of those that share their hash; `new` says where the sorted hashes change."""
    if len(numbers) < 2:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    groups = np.concatenate([[0], np.cumsum(new)]).astype(np.int64)
    several = np.bincount(groups)[groups] > 1
    return groups[several], numbers[several]


def _by_document_hash(
    corpus: Corpus, groups: NDArray[np.int64], members: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort each group by document hash, which depends on the documents alone and not on their order."""
    hashes = corpus.gather(DOCUMENTS, members)
    order = np.lexsort((hashes[:, 1], hashes[:, 0], groups))
    return groups[order], members[order]


def _leaders(groups: NDArray[np.int64], members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each member the first of its group."""
    if not len(groups):
        return members
    begins = np.concatenate([[True], groups[1:] != groups[:-1]])
    return members[np.flatnonzero(begins)[np.cumsum(begins) - 1]]


def _bounds(part: int, parts: int) -> tuple[np.uint64, np.uint64]:
    """Return the lowest and highest hash of a range."""
    return np.uint64(2**64 * part // parts), np.uint64(2**64 * (part + 1) // parts - 1)
