"""From a composed launch to its sites, each with a configuration of its own."""

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from isthmus.config import flat, replaced
from isthmus.errors import UserError
from isthmus.launch.sites_file import LaunchConfig, LaunchKind, LaunchRunConfig, SiteSpec
from isthmus.parallelism.sites.config import SitesConfig
from isthmus.train.config import PER_SITE, Config, run_name, site_name
from isthmus.train.validate import Plan, plan_run

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TIME = re.compile(r"\d+|\d+:\d+(:\d+)?|\d+-\d+(:\d+){0,2}")  # sbatch(1), --time


@dataclass(frozen=True)
class LaunchSite:
    """One site of a launch.

    Attributes:
        name: its folder in the run folder; `main` where there is one site without a name.
        config: what its ranks are told.
    """

    name: str
    spec: SiteSpec
    config: Config
    ranks_per_node: int

    @property
    def world_size(self) -> int:
        return self.spec.nodes * self.ranks_per_node

    @property
    def elsewhere(self) -> bool:
        """Whether it is reached by ssh."""
        return self.spec.ssh is not None or bool(self.spec.hosts)

    @property
    def directory(self) -> str:
        """The folder that it works in, on its own machines."""
        return self.spec.dir or os.getcwd()

    @property
    def folder(self) -> str:
        """The run folder of this site, on its own machines."""
        run_dir = self.config.run.dir if self.elsewhere else str(Path(self.config.run.dir).expanduser())
        return str(PurePosixPath(self.directory, run_dir, run_name(self.config), self.name))

    @property
    def files(self) -> str:
        """Where the launch keeps its own files, in the run folder of this site."""
        return f"{self.folder}/launch"

    @property
    def python(self) -> str:
        return self.spec.python or ("python3" if self.elsewhere else sys.executable)

    def hosts(self, exclude: Sequence[str]) -> list[str]:
        """Return the machines of launch=torchrun, as ssh names them; an empty name is this machine."""
        machines = self.spec.hosts or [self.spec.ssh or ""]
        return [host for host in machines if host not in exclude][: self.spec.nodes + self.spec.spares]


def train_config(config: LaunchRunConfig) -> Config:
    """Return what is left without the keys of the launch: what `isthmus train` would have been given."""
    shared = {field.name: getattr(config.sites, field.name) for field in dataclasses.fields(SitesConfig)}
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    return Config(**{**fields, "sites": SitesConfig(**shared)})


def launch_sites(config: LaunchRunConfig) -> list[LaunchSite]:
    """Return the sites in the order of `sites.names`.

    Raises:
        UserError: what cannot be launched, by key.
    """
    base, at = train_config(config), config.sites.at
    _validate_launch(config.launch)
    if not at:
        return [_site(base, site_name(base), SiteSpec(), config.launch)]
    names = config.sites.names or list(at)
    if set(names) != set(at):
        missing = ", ".join(sorted({*names} ^ {*at}))
        raise UserError(f"differ from those of sites.at: {missing}", where="sites.names", fix="name each site in both")
    if "launch" in names:
        raise UserError("names a folder of every run", where="sites.at.launch", fix="call the site something else")
    if config.sites.name is not None:
        raise UserError("is set for each site", where="sites.name", fix="leave it out")
    sites = []
    for name in names:
        own = replaced(Config, base, _own_keys(name, at[name]), f"sites.at.{name}.overrides")
        own = dataclasses.replace(own, sites=dataclasses.replace(own.sites, name=name, names=list(names)))
        sites.append(_site(own, name, at[name], config.launch))
    if config.launch.array:
        _validate_array(sites)
    return sites


def plan_site(site: LaunchSite, launch: LaunchConfig) -> Plan:
    """Check a site's configuration against its ranks, wherever they are.

    Raises:
        UserError: naming the key.
    """
    return plan_run(
        site.config,
        world_size=site.world_size,
        local_world_size=site.ranks_per_node,
        # Where ranks will see other devices than this process does.
        elsewhere=site.elsewhere or launch.kind is LaunchKind.slurm,
    )


def _own_keys(name: str, spec: SiteSpec) -> dict[str, object]:
    values = flat(spec.overrides)
    for key in values:
        place = key.startswith("data.sources.") and key.endswith(".path")
        if not place and key not in PER_SITE and key.partition(".")[0] not in PER_SITE:
            raise UserError(
                "has to be the same in all sites", where=f"sites.at.{name}.overrides.{key}", fix="set it for all"
            )
    if spec.lane_interface is not None:
        values["lane.interface"] = spec.lane_interface
    if spec.port_range is not None:
        values["lane.port_range"] = spec.port_range
    return values


def _site(config: Config, name: str, spec: SiteSpec, launch: LaunchConfig) -> LaunchSite:
    where = f"sites.at.{name}"
    ranks = launch.processes if spec.ranks_per_node is None else spec.ranks_per_node
    for key, value, least in (
        ("nodes", spec.nodes, 1),
        ("spares", spec.spares, 0),
        ("ranks_per_node", ranks, 1),
        ("threads", spec.threads, 1),
        ("slurm.signal_seconds", spec.slurm.signal_seconds, 1),
        ("slurm.max_requeues", spec.slurm.max_requeues, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"is {value}", where=f"{where}.{key}", fix=f"it starts at {least}")
    if spec.meeting_port is not None and not 0 < spec.meeting_port < 65536:
        raise UserError(f"is {spec.meeting_port}", where=f"{where}.meeting_port", fix="choose from 1 to 65535")
    for variable in spec.env:
        if not _ENVIRONMENT_NAME.fullmatch(variable):
            raise UserError(f"{variable!r} names no variable", where=f"{where}.env", fix="use letters, digits and _")
    site = LaunchSite(name, spec, config, ranks)
    if site.elsewhere and spec.dir is None:
        raise UserError("is not given", where=f"{where}.dir", fix="say which folder to work in there")
    if spec.dir is not None and not spec.dir.startswith("/"):
        raise UserError(f"is {spec.dir!r}", where=f"{where}.dir", fix="give an absolute path")
    for host in (spec.ssh, *spec.hosts):
        if host is not None and (not host or host.startswith("-") or any(sign.isspace() for sign in host)):
            raise UserError(f"{host!r} is no host", where=f"{where}.ssh", fix="give [USER@]HOST")
    _VALIDATE[launch.kind](site, launch, where)
    return site


def _validate_launch(launch: LaunchConfig) -> None:
    if launch.processes < 1:
        raise UserError(f"is {launch.processes}", where="launch.processes", fix="give the number of ranks, from 1")
    if launch.kind is LaunchKind.local:
        for key in ("ssh", "exclude"):
            if getattr(launch, key):
                fix = "use launch=torchrun or launch=slurm"
                raise UserError("would do nothing with launch=local", where=f"launch.{key}", fix=fix)
    if launch.array and launch.kind is not LaunchKind.slurm:
        raise UserError("is Slurm's", where="launch.array", fix="use launch=slurm")


def _validate_local(site: LaunchSite, launch: LaunchConfig, where: str) -> None:
    spec = site.spec
    if site.elsewhere or spec.nodes + spec.spares > 1:
        key = "ssh" if spec.ssh else "hosts" if spec.hosts else "nodes"
        raise UserError(
            "launch=local runs on this machine", where=f"{where}.{key}", fix="use launch=torchrun or launch=slurm"
        )


def _validate_torchrun(site: LaunchSite, launch: LaunchConfig, where: str) -> None:
    needed, found = site.spec.nodes, len(site.hosts(launch.exclude))
    if found < needed:
        without = f" without {', '.join(launch.exclude)}" if launch.exclude else ""
        raise UserError(f"{found} machines{without} for {needed} nodes", where=f"{where}.hosts", fix="name one a node")
    if site.spec.ssh and site.spec.hosts:
        raise UserError("is for Slurm's login node", where=f"{where}.ssh", fix="with launch=torchrun, hosts is enough")


def _validate_slurm(site: LaunchSite, launch: LaunchConfig, where: str) -> None:
    slurm = site.spec.slurm
    if site.spec.hosts:
        raise UserError("Slurm chooses the nodes", where=f"{where}.hosts", fix="use launch=torchrun, or leave it out")
    if slurm.time is not None and not _TIME.fullmatch(slurm.time):
        raise UserError(f"is {slurm.time!r}", where=f"{where}.slurm.time", fix="give MINUTES, HH:MM:SS or D-HH:MM:SS")
    if slurm.container_mounts and not slurm.container_image:
        raise UserError(
            "would do nothing", where=f"{where}.slurm.container_mounts", fix="give slurm.container_image too"
        )
    for option in (*slurm.options, *slurm.srun_options):
        if not option.startswith("-") or "\n" in option:
            raise UserError(f"{option!r} is no option", where=f"{where}.slurm.options", fix="write --NAME=VALUE")


_VALIDATE = {
    LaunchKind.local: _validate_local,
    LaunchKind.torchrun: _validate_torchrun,
    LaunchKind.slurm: _validate_slurm,
}
_JOB_KEYS = ("ssh", "ssh_options", "nodes", "spares", "dir", "python", "modules", "setup", "slurm")
_AGENT_KEYS = ("ranks_per_node", "interface", "affinity", "meeting_port")


def _validate_array(sites: Sequence[LaunchSite]) -> None:
    """The tasks of an array are one job with one set of options."""
    for key in (*_JOB_KEYS, *_AGENT_KEYS):
        first = getattr(sites[0].spec, key)
        for site in sites[1:]:
            if getattr(site.spec, key) != first:
                raise UserError(
                    f"{sites[0].name} and {site.name} differ in {key}",
                    where="launch.array",
                    fix="sites of one array have the same job: leave launch.array off",
                )
