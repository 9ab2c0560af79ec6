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


def choose_held_out(parts: Sequence[Part], wanted: int, reader: Reader) -> list[Extent]:
    """Return runs of documents of about `wanted` tokens together, in the order of the shards.

    Raises:
        UserError: an index is damaged.
    """
    if wanted <= 0:
        return []
    try:
        runs = _runs(parts, wanted, reader) or _one_document(parts, reader)
    except BadRead as error:
        raise UserError(str(error), where="held-out documents", fix="copy the data anew") from None
    return runs or _end(parts, wanted)


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


def _runs(parts: Sequence[Part], wanted: int, reader: Reader) -> list[Extent]:
    """Take the documents from each of some evenly spread tokens on, up to the boundary nearest to a fair share."""
    ends = np.cumsum([part.tokens for part in parts], dtype=np.int64).tolist()
    total, documents = ends[-1], sum(part.documents for part in parts)
    places = max(1, min(_PLACES, wanted * documents // total))  # each is to have a document at least
    found: list[Extent] = []
    taken = 0
    for place in range(places):
        share = (wanted - taken) // (places - place)
        if share <= 0:
            break
        token = (2 * place + 1) * total // (2 * places)
        number = bisect_right(ends, token)
        part, before = parts[number], ends[number - 1] if number else 0
        bounds = part.boundaries(reader)
        first = bounds.start(bounds.at(token - before))
        if found and found[-1].part is part:
            first = max(first, found[-1].last)
        goal, last = first + share, part.tokens
        if goal < last:
            document = bounds.at(goal)
            last = min(bounds.start(document), bounds.start(document + 1), key=lambda bound: abs(bound - goal))
        if last > first:
            found.append(Extent(part, first, last))
            taken += last - first
    return found


def _one_document(parts: Sequence[Part], reader: Reader) -> list[Extent]:
    """Return the smallest of a few long documents, unless it is most of the source."""
    total = sum(part.tokens for part in parts)
    found: list[Extent] = []
    for place in range(_PLACES):
        token = (2 * place + 1) * total // (2 * _PLACES)
        for part in parts:
            if token < part.tokens:
                bounds = part.boundaries(reader)
                document = bounds.at(token)
                found.append(Extent(part, bounds.start(document), bounds.start(document + 1)))
                break
            token -= part.tokens
    smallest = min(found, key=lambda extent: extent.last - extent.first)
    return [smallest] if 2 * (smallest.last - smallest.first) <= total else []


def _end(parts: Sequence[Part], wanted: int) -> list[Extent]:
    """Cut the last tokens off, inside of the one document that there is."""
    runs: list[Extent] = []
    for part in reversed(parts):
        size = min(wanted, part.tokens)
        if size:
            runs.insert(0, Extent(part, part.tokens - size, part.tokens))
        wanted -= size
    return runs
