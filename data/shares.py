"""Range arithmetic: which samples of a global batch belong to which site and rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def divide(samples: range, shares: Sequence[int]) -> list[range]:
    """Cut a range into consecutive parts in the proportion of whole shares, exactly where it divides.

    The samples of a site that was lost are a range too: divided over the others, they are handed out again exactly.
    """
    total = sum(shares)
    bounds = [samples.start + len(samples) * sum(shares[:number]) // total for number in range(len(shares) + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


@dataclass(frozen=True)
class Division:
    """How a global batch is divided: over sites by their shares, then over each site's data-parallel ranks evenly.

    Args:
        ranks: data-parallel ranks of each site.
        shares: of the sites; their number is the number of sites.
    """

    ranks: int = 1
    shares: tuple[int, ...] = (1,)

    def of_rank(self, batch: range, site: int, rank: int) -> range:
        """Return the samples of one rank of one site."""
        return divide(divide(batch, self.shares)[site], [1] * self.ranks)[rank]
