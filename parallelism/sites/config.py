"""Configuration of what crosses the links between sites."""

from dataclasses import dataclass
from enum import Enum

from isthmus.config import key


class SyncKind(Enum):
    none = "none"
    exact = "exact"
    local = "local"


class Wire(Enum):
    """How numbers are written on a link."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"
    topk = "topk"


@dataclass(kw_only=True, slots=True)
class SyncConfig:
    """How sites stay one model. `sync=exact` and `sync=local` fill in what belongs to them."""

    kind: SyncKind = key(SyncKind.none, "none (one site), exact (gradients, every step), local (parameters, rarely)")
    wire: Wire = key(Wire.fp32, "numbers on the link: fp32, bf16, int8, int4, topk; lossy ones carry their error")
    density: float | None = key(None, "topk: share of the numbers that is sent (0.02)")
    error_decay: float | None = key(None, "lossy wires: what is kept of the last error (1; SparseLoCo: 0.95)")
    every: int | None = key(None, "local: inner steps between two rounds of a fragment (H)")
    fragments: int | None = key(None, "local: parts of the model that are sent in turn (P, at most H)")
    overlap_steps: int | None = key(None, "local: steps between sending a fragment and applying it (tau, below H)")
    merge: float | None = key(None, "local: share of a site's own parameters that is kept when a fragment arrives")
    outer_learning_rate: float | None = key(
        None, "local: of the outer Nesterov optimizer (1 with momentum 0: the mean)"
    )
    outer_momentum: float | None = key(None, "local: of the outer Nesterov optimizer")
    verify_every: int = key(100, "rounds (exact: steps) between comparisons of a hash of the parameters; 0: never")


@dataclass(kw_only=True, slots=True)
class SitesConfig:
    name: str | None = key(None, "this site")
    names: list[str] = key([], "all sites, in the same order everywhere")
    shares: list[int] = key([], "exact: of the global batch for each site, in whole shares (none: equal)")
    store: str | None = key(None, "where sites meet, host:port; rank 0 of sites.host listens there")
    host: str | None = key(None, "the site that hosts the store (null: the first of sites.names)")
    token_file: str | None = key(
        None, "file with a secret that all sites share; without it anyone who reaches may join"
    )
    wait_seconds: float = key(600.0, "how long to wait for the other sites at the start")


@dataclass(kw_only=True, slots=True)
class LaneConfig:
    streams: int = key(4, "parallel connections of a lane to each other site")
    deadline_seconds: float = key(300.0, "a wait for another site fails when nothing has come from it for so long")
    interface: str | None = key(
        None, "network interface or own address for lanes (null: the one that routes to the store)"
    )
    port_range: str | None = key(None, "first-last: ports that lanes listen on, one per rank (null: any free port)")
    chunk_bytes: int = key(262_144, "a message is cut into chunks of this size, spread over the streams")
    congestion: str | None = key(
        None, "TCP's congestion control, such as cubic (null: bbr where the kernel has it, else the system's)"
    )
    buffer_bytes: int | None = key(
        None, "socket buffers (null: the system's autotuning), at least bandwidth x round trip"
    )
