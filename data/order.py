"""Which window of which source a sample index means: a pure function, in memory that does not grow with the data."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from isthmus.data.permutation import Shuffle, Signed, derive, key_of

LARGEST_BLOCK = 65_536  # samples after which a mix repeats, at most: the table of turns has so many rows


@dataclass(frozen=True)
class Shape:
    """All that the order needs to know of a source.

    Args:
        windows: in each epoch.
        tokens: of the stream that windows of `stride` tokens are cut from; 0 where a table says where they are.
        chunk_windows, group_chunks: see `Shuffle`.
    """

    windows: int
    tokens: int
    stride: int
    chunk_windows: int
    group_chunks: int

    @property
    def shuffle(self) -> Shuffle:
        return Shuffle(self.windows, self.chunk_windows, self.group_chunks)


@dataclass(frozen=True)
class Segment:
    """From sample `start` on, `quotas` of every sum(quotas) samples come from the sources; `phase` is for people."""

    start: int
    quotas: Mapping[str, int]
    phase: str = ""

    @property
    def block(self) -> int:
        return sum(self.quotas.values())


@dataclass(frozen=True)
class Position:
    """Where a sample is: the window's number in the source, and the token of its stream that it begins with (where
    windows are packed, the window's number again)."""

    phase: str
    source: str
    epoch: int
    window: int
    offset: int


@dataclass(frozen=True)
class Positions:
    """The same of many samples; `source` and `segment` are indices into the order's `names` and `segments`."""

    segment: Signed
    source: Signed
    epoch: Signed
    window: Signed
    offset: Signed


class Order:
    """Maps global sample indices to windows of sources, any of them at any time.

    In a segment the sources take turns, spread evenly: exactly q of every Q samples. A source goes on in a new segment
    where it was in the one before, so every epoch of it visits every window once, whatever the mix. Each epoch has an
    order of its own, and from the second on its windows begin at another token.

    Args:
        sources: every source that a segment names.
        segments: by rising start, the first at sample 0.
        seed: of the permutations.
    """

    def __init__(self, sources: Mapping[str, Shape], segments: Sequence[Segment], seed: int) -> None:
        assert segments[0].start == 0
        self.sources, self.segments, self.seed = dict(sources), tuple(segments), seed
        self.names = sorted(sources)
        self._keys = {name: key_of("order", seed, name) for name in self.names}
        self._starts = np.array([segment.start for segment in segments], dtype=np.int64)
        self._before = np.zeros((len(segments), len(self.names)), dtype=np.int64)
        for number, (segment, following) in enumerate(itertools.pairwise(segments)):
            self._before[number + 1] = self._before[number] + self._given(segment, following.start - segment.start)

    def __getitem__(self, sample: int) -> Position:
        found = self.positions(np.array([sample], dtype=np.int64))
        return Position(
            self.segments[int(found.segment[0])].phase,
            self.names[int(found.source[0])],
            int(found.epoch[0]),
            int(found.window[0]),
            int(found.offset[0]),
        )

    def positions(self, samples: Signed) -> Positions:
        """Return where each sample is."""
        segment = np.searchsorted(self._starts, samples, side="right") - 1
        source, nth = np.empty_like(samples), np.empty_like(samples)
        for number in np.unique(segment):
            where = np.flatnonzero(segment == number)
            block, place = np.divmod(samples[where] - self._starts[number], self.segments[number].block)
            turns = self._turns(int(number))
            source[where] = turns.source[place]
            nth[where] = self._before[number][source[where]] + block * turns.quotas[source[where]] + turns.number[place]
        epoch, window, offset = (np.empty_like(samples) for _ in range(3))
        for index in np.unique(source):
            where = np.flatnonzero(source == index)
            epoch[where], window[where], offset[where] = self._windows(self.names[int(index)], nth[where])
        return Positions(segment, source, epoch, window, offset)

    def counts(self, start: int, stop: int) -> dict[str, int]:
        """Return how many of the samples [start, stop) each source gives; sources that no segment names give none."""
        given = self._count_before(stop) - self._count_before(start)
        return {name: int(count) for name, count in zip(self.names, given, strict=True)}

    def epochs(self, samples: int) -> dict[str, float]:
        """Return how often each source has been passed over after `samples` samples."""
        return {name: count / self.sources[name].windows for name, count in self.counts(0, samples).items()}

    def shift(self, source: str, epoch: int) -> int:
        """Return the token that the first window of an epoch begins with."""
        return int(self._shifts(source, np.array([epoch], dtype=np.int64))[0])

    def _windows(self, name: str, nth: Signed) -> tuple[Signed, Signed, Signed]:
        shape = self.sources[name]
        epoch, within = np.divmod(nth, shape.windows)
        key = derive(np.full(len(nth), self._keys[name]), epoch.astype(np.uint64))
        window = shape.shuffle(within, key)
        if not shape.tokens:
            return epoch, window, window
        return epoch, window, (self._shifts(name, epoch) + window * shape.stride) % shape.tokens

    def _shifts(self, name: str, epoch: Signed) -> Signed:
        """Return where each epoch begins: at token 0, then anywhere in the first window."""
        stride = np.uint64(self.sources[name].stride)
        key = np.full(len(epoch), self._keys[name] ^ np.uint64(0x7368696674))
        drawn = (derive(key, epoch.astype(np.uint64)) % stride).astype(np.int64)
        return np.where(epoch == 0, 0, drawn)

    def _count_before(self, sample: int) -> Signed:
        number = int(np.searchsorted(self._starts, sample, side="right")) - 1
        segment = self.segments[number]
        return self._before[number] + self._given(segment, sample - segment.start)

    def _given(self, segment: Segment, samples: int) -> Signed:
        """Return what each source gives of the first samples of a segment."""
        block, place = divmod(samples, segment.block)
        turns = table_of_turns(tuple(segment.quotas.get(name, 0) for name in self.names))
        partial = np.bincount(turns.source[:place], minlength=len(self.names))
        return block * turns.quotas + partial.astype(np.int64)

    def _turns(self, segment: int) -> "Turns":
        quotas = self.segments[segment].quotas
        return table_of_turns(tuple(quotas.get(name, 0) for name in self.names))


@dataclass(frozen=True)
class Turns:
    """One block: whose turn it is at each place, and how many turns that source has had before in the block."""

    quotas: NDArray[np.int64]
    source: NDArray[np.int32]
    number: NDArray[np.int32]


@lru_cache(maxsize=8)
def table_of_turns(quotas: tuple[int, ...]) -> Turns:
    """Spread each source's turns evenly over a block: its k-th is due at (k + 1/2) / quota of the block."""
    source = np.repeat(np.arange(len(quotas), dtype=np.int32), quotas)
    number = np.concatenate([np.arange(quota, dtype=np.int32) for quota in quotas])
    due = (number + 0.5) / np.array(quotas, dtype=np.float64)[source]
    sequence = np.lexsort((source, due))
    return Turns(np.array(quotas, dtype=np.int64), source[sequence], number[sequence])


def quotas_of(shares: Mapping[str, float | Fraction], *, capped: frozenset[str] = frozenset()) -> dict[str, int]:
    """Return whole numbers q in the proportion of the shares, with a sum Q of at most 65,536.

    They are exact where such a Q can be, else rounded to 65,536ths (largest remainders), `capped` ones down; every
    source keeps at least one.
    """
    total = sum(Fraction(share) for share in shares.values())
    exact = {name: Fraction(share) / total for name, share in shares.items()}
    near = {name: share.limit_denominator(LARGEST_BLOCK) for name, share in exact.items()}
    block = math.lcm(*(share.denominator for share in near.values()))
    faithful = all(abs(near[name] - share) <= share / 10**12 for name, share in exact.items())
    if block <= LARGEST_BLOCK and faithful and sum(near.values()) == 1:
        return {name: int(share * block) for name, share in near.items()}
    quotas = {name: max(1, int(share * LARGEST_BLOCK)) for name, share in exact.items()}
    missing = LARGEST_BLOCK - sum(quotas.values())
    by_remainder = sorted(
        (name for name in quotas if name not in capped),
        key=lambda name: (quotas[name] - exact[name] * LARGEST_BLOCK, name),
    ) or sorted(quotas, key=lambda name: -quotas[name])
    for name in _in_turn(by_remainder, missing):
        quotas[name] += 1
    for _ in range(-missing):  # the places of sources that asked for less than one
        quotas[max(quotas, key=lambda name: (quotas[name], name))] -= 1
    common = math.gcd(*quotas.values())
    return {name: quota // common for name, quota in quotas.items()}


def _in_turn(names: Sequence[str], count: int) -> Iterator[str]:
    return (names[number % len(names)] for number in range(max(0, count)))
