"""What `isthmus launch` is told: `launch.*`, and a sites file (`sites=FILE`) that says where each site is."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from isthmus.config import key
from isthmus.parallelism.sites.config import SitesConfig
from isthmus.train.config import Config


class LaunchKind(Enum):
    local = "local"
    torchrun = "torchrun"
    slurm = "slurm"


class Affinity(Enum):
    """How the ranks of a node share its cores."""

    none = "none"
    cores = "cores"


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """`launch=local`, `torchrun` and `slurm` choose the kind."""

    kind: LaunchKind = key(LaunchKind.local, "local (this machine), torchrun (an agent on each node), slurm (jobs)")
    processes: int = key(1, "ranks on each node, where a site does not say ranks_per_node")
    ssh: bool = key(False, "start sites that have `ssh` or `hosts` over ssh; off: print what to run there")
    dry_run: bool = key(False, "show what would run where, and start nothing")
    exclude: list[str] = key([], "nodes to keep out: of `hosts`, or Slurm's names")
    array: bool = key(False, "slurm: sites of one cluster as one array job")


@dataclass(kw_only=True, slots=True)
class SlurmSpec:
    """A site's job. What is null is left to the cluster's defaults."""

    partition: str | None = key(None, "where the job waits")
    account: str | None = key(None, "who pays")
    qos: str | None = key(None, "quality of service")
    time: str | None = key(None, "limit on the job, as sbatch takes it (D-HH:MM:SS)")
    gpus_per_node: int | None = key(None, "GPUs of a node; each rank then gets one")
    cpus_per_node: int | None = key(None, "CPUs of a node for all its ranks")
    memory: str | None = key(None, "of a node (0: all of it)")
    constraint: str | None = key(None, "features that nodes must have")
    reservation: str | None = key(None, "a reservation to use")
    exclusive: bool = key(False, "no other job on these nodes")
    signal_seconds: int = key(120, "before the time limit: save, stop and requeue (Slurm may be 60 s early)")
    requeue: bool = key(True, "after a time limit, a preemption or a lost site the job queues again by itself")
    max_requeues: int = key(100, "then it stays ended")
    container_image: str | None = key(None, "for enroot/pyxis: srun --container-image")
    container_mounts: str | None = key(None, "srun --container-mounts, as FROM:TO[:FLAGS],...")
    options: list[str] = key([], "further options of sbatch, such as --comment=isthmus")
    srun_options: list[str] = key([], "further options of srun, such as --gpu-bind=single:1")


@dataclass(kw_only=True, slots=True)
class SiteSpec:
    """One site: how to reach it, where it works, and what its ranks get."""

    ssh: str | None = key(None, "login node or machine, [USER@]HOST or a name from ~/.ssh/config (null: this one)")
    hosts: list[str] = key([], "launch=torchrun: its nodes as ssh names them, the first hosts the meeting, then spares")
    ssh_options: list[str] = key([], "further options of ssh, such as -p, 2222")
    nodes: int = key(1, "nodes that train")
    spares: int = key(0, "further nodes that stand by and replace one that fails")
    ranks_per_node: int | None = key(None, "ranks of a node (null: launch.processes)")
    dir: str | None = key(None, "folder to work in, seen by all its nodes (null: this one; needed where ssh is given)")
    python: str | None = key(None, "interpreter that has isthmus there (null: this one; python3 where ssh is given)")
    modules: list[str] = key([], "environment modules to load")
    setup: list[str] = key([], "shell lines before anything else, such as source /opt/isthmus/bin/activate")
    env: dict[str, str] = key({}, "environment of the ranks, such as NCCL_IB_HCA")
    interface: str | None = key(None, "network interface inside the site, for NCCL, Gloo and the meeting of nodes")
    lane_interface: str | None = key(None, "interface or own address for lanes to other sites (null: lane.interface)")
    port_range: str | None = key(None, "first-last: ports that its lanes listen on (null: lane.port_range)")
    meeting_port: int | None = key(None, "where its nodes meet, on the first one (null: any free port)")
    threads: int | None = key(None, "OMP_NUM_THREADS of a rank (null: the node's cores / ranks)")
    affinity: Affinity = key(Affinity.none, "none, or cores: each rank keeps to its share of the node's cores")
    slurm: SlurmSpec = key(SlurmSpec, "")
    overrides: dict[str, Any] = key({}, "keys of train that may differ between sites, such as data.cache_dir")


@dataclass(kw_only=True, slots=True)
class LaunchSitesConfig(SitesConfig):
    """What all sites share, and each site."""

    at: dict[str, SiteSpec] = key({}, "NAME: {ssh, dir, nodes, slurm, ...}; none: one site, main, on this machine")


@dataclass(kw_only=True, slots=True)
class LaunchRunConfig(Config):
    """Everything that `isthmus launch` can be told: all of train, how to launch, and where the sites are."""

    sites: LaunchSitesConfig = key(LaunchSitesConfig, "")
    launch: LaunchConfig = key(LaunchConfig, "")
