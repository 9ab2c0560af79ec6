"""Which window of which source a sample index means: a pure function, in memory that does not grow with the data."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_LARGEST_BLOCK = 1_000  # samples after which the mix repeats, at most: the table of turns has so many rows


@dataclass(frozen=True)
class Position:
    source: str
    epoch: int
    window: int


class Order:
    """Maps a global sample index to (source, epoch, window).

    The sources take turns by rational weights q/Q: exactly q of every Q samples, spread evenly. Each epoch of a source
    visits its windows once, in an order of its own.

    Args:
        windows: number of windows of each source.
        weights: relative shares; exact where a block of up to 1000 samples can be, else rounded to thousandths.
        seed: of the permutations.
    """

    def __init__(self, windows: Mapping[str, int], weights: Mapping[str, float], seed: int) -> None:
        self.windows, self.seed = dict(windows), seed
        total = sum(weights.values())
        shares = {name: Fraction(weight / total).limit_denominator(_LARGEST_BLOCK) for name, weight in weights.items()}
        block = math.lcm(*(share.denominator for share in shares.values()))
        if block > _LARGEST_BLOCK or not all(shares.values()):
            # No small block is exact, or a share rounds to nothing: rounded to thousandths, and at least one of them.
            block = _LARGEST_BLOCK
            shares = {name: Fraction(round(weight / total * block), block) for name, weight in weights.items()}
        self.quotas = {name: max(1, int(share * block)) for name, share in shares.items()}
        self.block = sum(self.quotas.values())
        slots = [((turn + 0.5) / quota, name) for name, quota in self.quotas.items() for turn in range(quota)]
        seen = dict.fromkeys(self.quotas, 0)
        self._turns: list[tuple[str, int]] = []
        for _, name in sorted(slots):
            self._turns.append((name, seen[name]))
            seen[name] += 1

    def __getitem__(self, sample: int) -> Position:
        block, place = divmod(sample, self.block)
        source, turn = self._turns[place]
        epoch, within = divmod(block * self.quotas[source] + turn, self.windows[source])
        return Position(source, epoch, permute(within, self.windows[source], f"{self.seed}/{source}/{epoch}"))

    def counts(self, start: int, stop: int) -> dict[str, int]:
        """Return how many of the samples [start, stop) each source gives."""
        until, since = self._count_before(stop), self._count_before(start)
        return {name: until[name] - since[name] for name in self.quotas}

    def epochs(self, samples: int) -> dict[str, float]:
        """Return how often each source has been passed over after `samples` samples."""
        return {name: count / self.windows[name] for name, count in self._count_before(samples).items()}

    def _count_before(self, sample: int) -> dict[str, int]:
        block, place = divmod(sample, self.block)
        counts = {name: block * quota for name, quota in self.quotas.items()}
        for source, _ in self._turns[:place]:
            counts[source] += 1
        return counts


def permute(index: int, size: int, key: str) -> int:
    """Return the image of `index` under a keyed permutation of range(size).

    A four-round Feistel network on the next even number of bits (Luby and Rackoff 1988), applied again while the image
    lies outside the range (cycle walking; Black and Rogaway 2002).
    """
    if size <= 1:
        return 0
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for round_key in _round_keys(key):
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        index = left << half_bits | right
        if index < size:
            return index


@lru_cache(maxsize=256)
def _round_keys(key: str) -> tuple[int, ...]:
    digest = hashlib.sha256(key.encode()).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(4))


def _mix(value: int) -> int:
    """splitmix64's finalizer (Steele, Lea and Flood 2014)."""
    value &= 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
