"""What a preflight found: one line each, with a verdict and what to do. Pure data."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

Site = Mapping[str, Any]  # {"name", "size", "ranks": {"0": what that rank saw}}
Sites = Mapping[str, Site]


class Status(Enum):
    passed = "pass"
    warn = "warn"
    fail = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        where: site, and what part of it: all of it, a node, a rank, or a link as in `oregon > iowa`.
        node: the machine to leave out, if it is one's fault.
    """

    status: Status
    check: str
    where: str
    measured: str
    fix: str = ""
    node: str | None = None


def worst(findings: Sequence[Finding]) -> Status:
    order = list(Status)
    return max((finding.status for finding in findings), key=order.index, default=Status.passed)


def looks_of(site: Site) -> list[Mapping[str, Any]]:
    """Return what each rank of a site saw that looked, in order."""
    ranks = [site["ranks"][number] for number in sorted(site["ranks"], key=int)]
    return [look for look in ranks if "refused" not in look]


def everyone(sites: Sites) -> Iterator[tuple[Site, Mapping[str, Any]]]:
    """Yield every rank that looked, with its site, in order."""
    for site in sites.values():
        for look in looks_of(site):
            yield site, look


def usual(values: Sequence[Any]) -> Any:
    """Return the most frequent value, of equally frequent ones the first."""
    return Counter(values).most_common(1)[0][0]


def blamed(look: Mapping[str, Any], values: Sequence[Any]) -> str | None:
    """Return the machine that is unlike the others, unless there is no telling which of two halves is right."""
    (_, most), *_ = Counter(values).most_common(1)
    return str(look["node"]) if 2 * most > len(values) else None


def place(site: Site, look: Mapping[str, Any], *, rank: bool = True) -> str:
    """Return `oregon: node7, rank 3`, without what says nothing."""
    ranks = f"rank {look['rank']}" if rank and site["size"] > 1 else ""
    node = look["node"] if several_nodes(site) or not ranks else ""
    return f"{site['name']}: {', '.join(part for part in (node, ranks) if part)}"


def several_nodes(site: Site) -> bool:
    return len({look["node"] for look in site["ranks"].values()}) > 1


def without(site: Site, look: Mapping[str, Any], fix: str) -> str:
    """Return what to do, and how to leave the machine out where there are others."""
    return f"{fix}, or leave it out: launch.exclude=[{look['node']}]" if several_nodes(site) else fix


def share(value: float) -> str:
    return f"{100 * value:.3g}%"
