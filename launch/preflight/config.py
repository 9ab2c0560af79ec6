"""Configuration of a preflight: `preflight.*` on the command line of `isthmus launch preflight`."""

import math
from dataclasses import dataclass, replace

from isthmus.config import key
from isthmus.errors import UserError
from isthmus.launch.sites import LaunchSite, launch_sites
from isthmus.launch.sites_file import LaunchKind, LaunchRunConfig


@dataclass(kw_only=True, slots=True)
class PreflightConfig:
    wait_seconds: float = key(60.0, "how long to wait for other sites, and for ranks that do not answer")
    matmul_seconds: float = key(0.5, "length of each of three windows in which every rank multiplies matrices")
    disk_mb: int = key(64, "10^6 bytes that each rank writes into the checkpoint folder (less where little is free)")
    link_seconds: float = key(2.0, "of sending for each link, direction and number of streams (more on long links)")
    probes: int = key(1000, "datagrams sent each way over two seconds, to count losses")
    slow_rank: float = key(0.75, "a rank below this share of its site's median speed fails; half as far below 1 warns")
    peak_share: float = key(0.5, "a GPU below this share of its data sheet in matrix products fails")
    asymmetry: float = key(2.0, "a link fails if one direction carries so many times more than the other")
    loss: float = key(0.01, "a link that loses this share of its packets fails; a fifth of it warns")
    clock_seconds: float = key(5.0, "clocks that differ by more fail; a tenth of it warns")
    link_mbps: float | None = key(None, "a link fails if it carries less in a direction, in Mbit/s (null: no demand)")
    out: str | None = key(None, "cluster file for isthmus plan (null: cluster.yaml in the run folder)")


@dataclass(kw_only=True, slots=True)
class PreflightRunConfig(LaunchRunConfig):
    """Everything that `isthmus launch preflight` can be told: all of launch, and the preflight."""

    preflight: PreflightConfig = key(PreflightConfig, "")


def this_site(config: PreflightRunConfig) -> LaunchSite:
    """Return the site that this preflight is started in; of a sites file, the one that `sites.name` names.

    Raises:
        UserError: it names none, or the launch could not be.
    """
    if not config.sites.at:
        return launch_sites(config)[0]
    name = config.sites.name
    sites = {site.name: site for site in launch_sites(replace(config, sites=replace(config.sites, name=None)))}
    if name is None and len(sites) == 1:
        (name,) = sites
    if name not in sites:
        raise UserError(
            "names no site of the sites file" if name else "is not given: a preflight is started in each site",
            where="sites.name",
            fix=f"say which one this is: {', '.join(sites)}; or give launch.ssh=true, which starts it in all",
        )
    return sites[name]


def sites_to_start(config: PreflightRunConfig) -> list[LaunchSite]:
    """Return the sites that a preflight is started in from here; none: it is that of this site alone.

    Raises:
        UserError: the launch could not be.
    """
    slurm = config.launch.kind is LaunchKind.slurm
    if config.sites.name is not None or not (config.sites.at or slurm):
        return []
    sites = launch_sites(config)
    if any(site.elsewhere for site in sites) and not config.launch.ssh:
        return []
    here = len(sites) == 1 and sites[0].spec.nodes == 1 and not sites[0].elsewhere
    return [] if here and not slurm else sites


def validate_preflight(keys: PreflightConfig) -> None:
    """Refuse limits that no measurement could be held against.

    Raises:
        UserError: naming the key.
    """
    for name in ("wait_seconds", "matmul_seconds", "disk_mb", "link_seconds", "loss", "clock_seconds"):
        _check(name, getattr(keys, name) > 0, getattr(keys, name), "it must be positive")
    _check("probes", keys.probes >= 100, keys.probes, "100 or more: fewer say nothing of a loss")
    _check("probes", keys.probes <= 100_000, keys.probes, "100000 at most: two seconds hold no more")
    for name in ("slow_rank", "peak_share"):
        _check(name, 0 < getattr(keys, name) < 1, getattr(keys, name), "a share between 0 and 1")
    _check("asymmetry", keys.asymmetry > 1, keys.asymmetry, "it is above 1")
    _check("link_mbps", keys.link_mbps is None or keys.link_mbps > 0, keys.link_mbps, "it must be positive")


def _check(name: str, holds: bool, value: object, fix: str) -> None:
    if not holds or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"is {value}", where=f"preflight.{name}", fix=fix)
