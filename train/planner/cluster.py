"""Sites and links, as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from isthmus.errors import UserError
from isthmus.train.planner.accelerators import Accelerator
from isthmus.train.planner.constants import Constants, constants_of

# Llama 3 405B (arXiv 2407.21783, table 5): 419 unexpected interruptions of 16,384 accelerators in 54 days.
HOURS_BETWEEN_FAILURES = 16_384 * 54 * 24 / 419


@dataclass(frozen=True, kw_only=True)
class Site:
    """One data center: `count` accelerators of one kind."""

    name: str
    accelerator: Accelerator
    count: int
    constants: Constants | None = None  # what was measured there; None: calibrated or derived from the data sheet
    price_per_hour: float | None = None  # of one accelerator; None: the data sheet's assumption
    hours_between_failures: float = HOURS_BETWEEN_FAILURES  # of one accelerator with its share of host and network
    storage_bytes_per_second: float = 20e9  # of the whole site's checkpoint storage
    slowdown: float = 0.0  # how much longer the slowest accelerator takes than the usual one (stragglers)

    @property
    def price(self) -> float:
        return self.accelerator.price_per_hour if self.price_per_hour is None else self.price_per_hour

    @property
    def measured(self) -> Constants:
        return self.constants or constants_of(self.accelerator)


@dataclass(frozen=True, kw_only=True)
class Link:
    """The connection between two sites; bytes per second count each direction."""

    ends: tuple[str, str]
    bytes_per_second: float
    rtt_seconds: float = 0.05
    price_per_gigabyte: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    sites: Sequence[Site]
    links: Sequence[Link] = field(default_factory=tuple)

    def link(self, one: str, other: str) -> Link | None:
        return next((link for link in self.links if set(link.ends) == {one, other}), None)

    def restricted(self, names: Sequence[str]) -> "Cluster":
        """Return the part that these sites and the links among them make."""
        chosen = set(names)
        return Cluster(
            sites=[site for site in self.sites if site.name in chosen],
            links=[link for link in self.links if chosen.issuperset(link.ends)],
        )

    def components(self) -> list[list[str]]:
        """Return the names of sites that links join, group by group."""
        left = [site.name for site in self.sites]
        groups = []
        while left:
            group, edge = [], [left.pop(0)]
            while edge:
                name = edge.pop()
                group.append(name)
                near = [other for other in left if self.link(name, other)]
                left = [other for other in left if other not in near]
                edge += near
            groups.append(group)
        return groups

    def routed(self) -> "Cluster":
        """Return the same sites with a link for every pair, over the widest path of links between them.

        A path's bandwidth is its narrowest link's, shared equally by the pairs whose paths use it; round trips and
        prices add up. Lanes join every pair of sites, so that traffic between sites without a link takes this way.
        """
        names = [site.name for site in self.sites]
        paths = {}
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                paths[one, other] = self._widest_path(one, other)
        load: dict[tuple[str, str], int] = {}
        for path in paths.values():
            for link in path:
                load[link.ends] = load.get(link.ends, 0) + 1
        return Cluster(
            sites=self.sites,
            links=[
                Link(
                    ends=ends,
                    bytes_per_second=min(link.bytes_per_second / load[link.ends] for link in path),
                    rtt_seconds=sum(link.rtt_seconds for link in path),
                    price_per_gigabyte=sum(link.price_per_gigabyte for link in path),
                )
                for ends, path in paths.items()
            ],
        )

    def _widest_path(self, start: str, goal: str) -> list[Link]:
        best: dict[str, tuple[float, int, list[Link]]] = {start: (float("inf"), 0, [])}
        open_ = [start]
        while open_:
            open_.sort(key=lambda name: (-best[name][0], best[name][1]))
            here = open_.pop(0)
            width, hops, path = best[here]
            for link in self.links:
                if here not in link.ends:
                    continue
                there = link.ends[1] if link.ends[0] == here else link.ends[0]
                offered = (min(width, link.bytes_per_second), hops + 1, [*path, link])
                if there not in best or (-offered[0], offered[1]) < (-best[there][0], best[there][1]):
                    best[there] = offered
                    open_.append(there)
        if goal not in best:
            raise UserError(
                f"no links lead from {start} to {goal}",
                where="cluster.links",
                fix=f"add a link that joins {goal} to the others, or leave the site out",
            )
        return best[goal][2]
