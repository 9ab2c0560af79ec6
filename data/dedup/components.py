"""From pairs to survivors: documents that pairs connect are one, and the one of the lowest hash stays."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isthmus.data.dedup.keys import DOCUMENTS
from isthmus.data.dedup.pairs import Corpus, Pairs

KEPT, EXACT, NEAR = 0, 1, 2


@dataclass(frozen=True)
class Survivors:
    """`fates` says of each document whether it stays; `copies` how many fell to each that stays (number: count)."""

    fates: NDArray[np.uint8]
    copies: dict[int, int]


def survivors(corpus: Corpus, equal: Iterable[Pairs], alike: Iterable[Pairs]) -> Survivors:
    """Join pairs and choose a survivor of each component; the order of the pairs changes nothing."""
    fates = np.zeros(corpus.documents, dtype=np.uint8)
    parents = np.arange(corpus.documents, dtype=np.int64)
    touched = []
    for pairs in equal:
        fates[pairs[:, 1]] = EXACT
        join(parents, pairs)
        touched.append(np.unique(pairs))
    for pairs in alike:
        join(parents, pairs)
        touched.append(np.unique(pairs))
    if not touched:
        return Survivors(fates, {})
    members = np.unique(np.concatenate(touched))
    roots = find(parents, members)
    hashes = corpus.gather(DOCUMENTS, members)
    order = np.lexsort((hashes[:, 1], hashes[:, 0], roots))
    members, roots = members[order], roots[order]
    first = np.concatenate([[True], roots[1:] != roots[:-1]]) if len(roots) else np.zeros(0, dtype=bool)
    dropped = members[~first]
    fates[dropped[fates[dropped] == KEPT]] = NEAR
    fates[members[first]] = KEPT
    sizes = np.diff(np.concatenate([np.flatnonzero(first), [len(members)]]))
    copies = {int(number): int(size) - 1 for number, size in zip(members[first], sizes, strict=True)}
    return Survivors(fates, copies)


def join(parents: NDArray[np.int64], pairs: Pairs) -> None:
    """Connect pairs: roots hook onto lower roots until none differ (after Shiloach and Vishkin 1982)."""
    left, right = pairs[:, 0], pairs[:, 1]
    while len(left):
        left, right = find(parents, left), find(parents, right)
        differ = left != right
        low, high = np.minimum(left, right)[differ], np.maximum(left, right)[differ]
        np.minimum.at(parents, high, low)
        left, right = low, high


def find(parents: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the root of each number, and shorten the paths to it."""
    roots = parents[numbers]
    while not np.array_equal(above := parents[roots], roots):
        roots = above
    parents[numbers] = roots
    return roots
