"""Best-fit packing of documents into windows: whole ones wherever they fit, as few windows as that allows."""

from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def cut(starts: Numbers, capacity: int) -> tuple[Numbers, Numbers]:
    """Cut documents that are longer than a window into pieces as long as one, and a rest.

    Args:
        starts: first token of each document, and the end of the last.

    Returns:
        First token and tokens of each piece, in order; documents without a token have none.
    """
    pieces = -(-np.diff(starts) // capacity)
    document = np.repeat(np.arange(len(pieces)), pieces)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = starts[document] + nth * capacity
    return first, np.minimum(starts[document + 1] - first, capacity)


def best_fit(tokens: Numbers, capacity: int) -> Numbers:
    """Return the window of each piece: the longest first, each into the fullest window that still holds it.

    Best-fit decreasing, as in Best-fit Packing (Ding et al., arXiv 2404.10830, algorithm 1). Windows are kept by the
    space that is left in them, and pieces of one length are placed together, so that there are no more steps than
    about twice the number of different lengths.

    Args:
        tokens: of each piece, from 1 to `capacity`.
    """
    order = np.argsort(-tokens, kind="stable")
    descending = tokens[order]
    windows = np.empty(len(tokens), dtype=np.int64)
    open_windows = _OpenWindows()
    made = 0
    changes = np.flatnonzero(np.diff(descending, prepend=-1)).tolist()
    for first, last in pairwise([*changes, len(tokens)]):
        length, at = int(descending[first]), first
        while at < last:
            space = open_windows.smallest_space(length)
            # A window that took a piece and holds another is the fullest one that does: it takes all that it can.
            each = (space or capacity) // length
            wanted = -(-(last - at) // each)
            if space is None:
                space, chosen = capacity, np.arange(made, made + wanted)
                made += wanted
            else:
                chosen = open_windows.take(space, wanted)
            filled = np.repeat(chosen, each)[: last - at]
            windows[order[at : at + len(filled)]] = filled
            whole, rest = divmod(len(filled), each)
            open_windows.put(space - each * length, chosen[:whole])
            if rest:
                open_windows.put(space - rest * length, chosen[whole:])
            at += len(filled)
    return windows


class _OpenWindows:
    """Windows that are not full, by the space that is left in them."""

    def __init__(self) -> None:
        self._by_space: dict[int, list[Numbers]] = {}
        self._spaces: list[int] = []

    def smallest_space(self, least: int) -> int | None:
        place = bisect_left(self._spaces, least)
        return self._spaces[place] if place < len(self._spaces) else None

    def put(self, space: int, windows: Numbers) -> None:
        if not space or not len(windows):
            return
        if space not in self._by_space:
            self._by_space[space] = []
            insort(self._spaces, space)
        self._by_space[space].append(windows)

    def take(self, space: int, wanted: int) -> Numbers:
        """Return at most so many windows."""
        waiting, taken = self._by_space[space], []
        while waiting and wanted:
            windows = waiting.pop()
            if len(windows) > wanted:
                waiting.append(windows[wanted:])
            taken.append(windows[:wanted])
            wanted -= len(taken[-1])
        if not waiting:
            del self._by_space[space]
            self._spaces.pop(bisect_left(self._spaces, space))
        return np.concatenate(taken)
