"""Configuration of the lab: `lab.*` on the command line of `isthmus lab`."""

from dataclasses import dataclass
from enum import Enum

from isthmus.config import key
from isthmus.train.config import Config


class LabShape(Enum):
    links = "links"
    none = "none"


@dataclass(kw_only=True, slots=True)
class LabConfig:
    sites: int | None = key(None, "number of sites (null: as sites.names or lab.links says, else 2: site1, site2)")
    ranks_per_site: int = key(1, "ranks in each site")
    bandwidth_mbps: float | None = key(100.0, "of each link in each direction, IP packets in Mbit/s (null: no limit)")
    rtt_ms: float = key(50.0, "round trip of each link")
    jitter_ms: float = key(0.0, "up to so much more delay for each packet, never reordered")
    loss: float = key(0.0, "share of packets that are lost")
    queue_ms: float | None = key(None, "packets that would wait longer for a link are dropped (null: a round trip)")
    links: str | None = key(None, "YAML file of sites and links, each pair and direction as it is")
    shape: LabShape = key(LabShape.links, "links, or none: the same sites over loopback, without privileges")
    reference: bool = key(False, "run the same again without limits and report the ratio")


@dataclass(kw_only=True, slots=True)
class LabRunConfig(Config):
    """Everything that `isthmus lab` can be told: all of train, and the lab."""

    lab: LabConfig = key(LabConfig, "")
