"""Which documents of a source of shards are held out: whole ones from places spread evenly over it.

The last documents would be those of one site, channel or crawl. The choice depends on the documents' lengths alone, so
it is the same wherever the data lies, and however windows are made.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from isthmus.data.reading import BadRead, Reader
from isthmus.data.streams import Extent, Part
from isthmus.errors import UserError

_PLACES = 32  # each costs a few reads of an index at start-up
Run = tuple[int, int]  # from a token of the whole source to another


def choose_held_out(parts: Sequence[Part], wanted: int, reader: Reader) -> list[Extent]:
    """Return runs of documents of about `wanted` tokens together, in the order of the shards.

    Raises:
        UserError: an index is damaged.
    """
    if wanted <= 0:
        return []
    documents = _Documents(parts, reader)
    try:
        runs = _spread(documents, wanted) or [_one(documents, wanted)]
    except BadRead as error:
        raise UserError(str(error), where="held-out documents", fix="copy the data anew") from None
    return documents.extents(runs)


def without(parts: Sequence[Part], held_out: Sequence[Extent]) -> list[Extent]:
    """Return what is left of the shards."""
    left = []
    taken = list(held_out)
    for part in parts:
        at = 0
        while taken and taken[0].part is part:
            run = taken.pop(0)
            left.append(Extent(part, at, run.first))
            at = run.last
        left.append(Extent(part, at, part.tokens))
    return [extent for extent in left if extent.last > extent.first]


class _Documents:
    """The documents of all shards, by tokens counted over the whole source."""

    def __init__(self, parts: Sequence[Part], reader: Reader) -> None:
        self._parts, self._reader = parts, reader
        self._ends = np.cumsum([part.tokens for part in parts], dtype=np.int64).tolist()
        self.tokens: int = self._ends[-1]
        self.count = sum(part.documents for part in parts)

    def around(self, token: int) -> Run:
        """Return where the document of a token begins and ends."""
        number = bisect_right(self._ends, token)
        before = self._ends[number - 1] if number else 0
        bounds = self._parts[number].boundaries(self._reader)
        document = bounds.at(token - before)
        return before + bounds.start(document), before + bounds.start(document + 1)

    def extents(self, runs: Sequence[Run]) -> list[Extent]:
        found = []
        for first, last in runs:
            while first < last:
                number = bisect_right(self._ends, first)
                before = self._ends[number - 1] if number else 0
                stop = min(last, self._ends[number])
                found.append(Extent(self._parts[number], first - before, stop - before))
                first = stop
        return found


def _spread(documents: _Documents, wanted: int) -> list[Run]:
    """Take the documents from each of some evenly spread tokens on, up to the boundary nearest to a fair share."""
    places = max(1, min(_PLACES, wanted * documents.count // documents.tokens))  # each is to have one at least
    runs: list[Run] = []
    taken = reached = 0
    for place in range(places):
        share = (wanted - taken) // (places - place)
        first = max(documents.around((2 * place + 1) * documents.tokens // (2 * places))[0], reached)
        goal = min(first + share, documents.tokens)
        last = goal
        if first < goal < documents.tokens:
            last = min(documents.around(goal), key=lambda bound: abs(bound - goal))
        if last > first:
            runs.append((first, last))
            taken, reached = taken + last - first, last
    return runs


def _one(documents: _Documents, wanted: int) -> Run:
    """Return the shortest of a few documents, which are all long; of one far longer than what is wanted, the end."""
    found = [documents.around((2 * place + 1) * documents.tokens // (2 * _PLACES)) for place in range(_PLACES)]
    first, last = min(found, key=lambda run: run[1] - run[0])
    return (first, last) if last - first <= 2 * wanted else (last - wanted, last)
