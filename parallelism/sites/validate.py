"""What can be known to be wrong with sites, sync and lanes before anything starts."""

import logging
import socket
from collections.abc import Sequence

from isthmus.errors import UserError
from isthmus.parallelism.config import ModelConfig, ParallelConfig
from isthmus.parallelism.sites.config import LaneConfig, SitesConfig, SyncConfig, SyncKind, Wire
from isthmus.parallelism.topology import Topology

# Loss does not make it slow; cubic fills a tenth of a 200 Mbit/s, 80 ms link that loses one packet in a thousand.
_BEST_CONTROL = "bbr"
_LOCAL_KEYS = ("every", "fragments", "overlap_steps", "merge", "outer_learning_rate", "outer_momentum")


def validate_sync(sync: SyncConfig, model: ModelConfig, parallel: ParallelConfig) -> None:
    """Refuse a method of sync that is contradictory.

    Raises:
        UserError: naming the key, what is wrong and what to choose.
    """
    if sync.verify_every < 0:
        raise UserError(f"is {sync.verify_every}", where="sync.verify_every", fix="0 means never")
    _validate_wire(sync)
    for name in _LOCAL_KEYS:
        given = getattr(sync, name) is not None
        if given and sync.kind is not SyncKind.local:
            raise UserError(f"would do nothing with sync={sync.kind.name}", where=f"sync.{name}", fix="use sync=local")
        if not given and sync.kind is SyncKind.local:
            raise UserError("is not given", where=f"sync.{name}", fix="sync=local brings a default; give a value")
    if sync.kind is SyncKind.local:
        _validate_local(sync, model, parallel)


def _validate_wire(sync: SyncConfig) -> None:
    lossless = sync.wire is Wire.fp32
    if sync.kind is SyncKind.none and not lossless:
        raise UserError("would do nothing with sync=none", where="sync.wire", fix="use sync=exact or sync=local")
    if sync.density is not None:
        if sync.wire is not Wire.topk:
            raise UserError(f"means nothing to {sync.wire.name}", where="sync.density", fix="use sync.wire=topk")
        if not 0 < sync.density <= 1:
            raise UserError(f"is {sync.density}", where="sync.density", fix="choose above 0, up to 1")
    if sync.error_decay is not None:
        if lossless:
            raise UserError("there is no error in fp32", where="sync.error_decay", fix="use a lossy sync.wire")
        if not 0 <= sync.error_decay <= 1:
            raise UserError(f"is {sync.error_decay}", where="sync.error_decay", fix="choose from 0 to 1")


def _validate_local(sync: SyncConfig, model: ModelConfig, parallel: ParallelConfig) -> None:
    every, fragments, overlap = sync.every or 0, sync.fragments or 0, sync.overlap_steps or 0
    if every < 1:
        raise UserError(f"is {sync.every}", where="sync.every", fix="it starts at 1")
    if fragments < 1:
        raise UserError(f"is {sync.fragments}", where="sync.fragments", fix="it starts at 1")
    if fragments > every:
        raise UserError(
            f"{fragments} fragments do not fit into {every} steps", where="sync.fragments", fix="at most sync.every"
        )
    if fragments > model.num_layers:
        raise UserError(
            f"{fragments} fragments of a model with {model.num_layers} layers",
            where="sync.fragments",
            fix="at most one a layer",
        )
    if not 0 <= overlap < every:
        raise UserError(
            f"is {overlap}", where="sync.overlap_steps", fix=f"choose from 0 to {every - 1}, below sync.every"
        )
    if not 0 <= (sync.merge or 0.0) < 1:
        raise UserError(
            f"is {sync.merge}", where="sync.merge", fix="choose from 0 to below 1: at 1 nothing would arrive"
        )
    if (sync.outer_learning_rate or 0.0) <= 0:
        raise UserError(f"is {sync.outer_learning_rate}", where="sync.outer_learning_rate", fix="it must be positive")
    if not 0 <= (sync.outer_momentum or 0.0) < 1:
        raise UserError(f"is {sync.outer_momentum}", where="sync.outer_momentum", fix="choose from 0 to below 1")
    if model.tied_embeddings and parallel.pipeline > 1 and sync.wire is not Wire.fp32:
        # The first and the last stage cut their copies differently, and would round them differently.
        raise UserError(
            "two pipeline stages hold the tied embedding, and a lossy wire would part them",
            where="sync.wire",
            fix="use fp32, parallel.pipeline=1 or model.tied_embeddings=false",
        )


def validate_sites(
    sites: SitesConfig, lane: LaneConfig, sync: SyncConfig, parallel: ParallelConfig, topology: Topology
) -> None:
    """Refuse a list of sites that cannot meet.

    Raises:
        UserError: naming the key, what is wrong and what to choose.
    """
    names = sites.names
    if sites.shares:
        _validate_shares(sites.shares, len(names), sync)
    if sync.kind is SyncKind.none:
        if len(names) > 1:
            raise UserError(
                f"{len(names)} sites would each train alone", where="sync=none", fix="use sync=exact or sync=local"
            )
        if sites.name is not None and names and sites.name not in names:
            raise UserError(f"{sites.name!r} is none of {', '.join(names)}", where="sites.name", fix="choose one")
        _validate_name(sites.name)
        return
    if topology.data * topology.context > 1 and not parallel.distributed_optimizer:
        raise UserError(
            f"each of {topology.data * topology.context} data-parallel ranks would send a copy of everything",
            where="parallel.distributed_optimizer=false",
            fix="between sites use the distributed optimizer, whose ranks send a part each",
        )
    if len(names) < 2:
        raise UserError(
            f"needs two sites or more, {len(names)} given",
            where=f"sync={sync.kind.name}",
            fix="sites.names=[oregon,iowa] sites.name=oregon sites.store=HOST:PORT, or try it with `isthmus lab`",
        )
    if len(set(names)) < len(names):
        raise UserError(f"{', '.join(names)}: one is there twice", where="sites.names", fix="name each site once")
    for name in names:
        _validate_name(name)
    if sites.name is None or sites.name not in names:
        raise UserError(
            f"{sites.name!r} is none of {', '.join(names)}", where="sites.name", fix="say which one this is"
        )
    if sites.host is not None and sites.host not in names:
        raise UserError(f"{sites.host!r} is none of {', '.join(names)}", where="sites.host", fix="choose one of them")
    split_address(sites.store)
    if sites.wait_seconds <= 0:
        raise UserError(f"is {sites.wait_seconds}", where="sites.wait_seconds", fix="it must be positive")
    _validate_lane(lane, topology)


def split_address(store: str | None) -> tuple[str, int]:
    """Return host and port of `sites.store`.

    Raises:
        UserError: it is not HOST:PORT.
    """
    host, _, port = (store or "").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"is {store!r}", where="sites.store", fix="give HOST:PORT of the site that hosts the meeting")
    return host.strip("[]"), int(port)


def port_range(lane: LaneConfig) -> tuple[int, int] | None:
    """Return first and last port of `lane.port_range`.

    Raises:
        UserError: it is not FIRST-LAST.
    """
    if lane.port_range is None:
        return None
    first, _, last = lane.port_range.partition("-")
    if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 65536):
        raise UserError(f"is {lane.port_range!r}", where="lane.port_range", fix="give FIRST-LAST, as in 29500-29531")
    return int(first), int(last)


def control_congestion(connection: socket.socket, control: str | None) -> None:
    """Choose how TCP fills a link.

    Raises:
        UserError: the kernel does not have what was asked for.
    """
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, (control or _BEST_CONTROL).encode())
    except OSError:
        if control is not None:
            raise UserError(
                f"the kernel does not offer {control!r}",
                where="lane.congestion",
                fix="see /proc/sys/net/ipv4/tcp_available_congestion_control, or leave it null",
            ) from None
        logging.warning("no %s here: the system's congestion control may leave long links empty", _BEST_CONTROL)


def _validate_shares(shares: Sequence[int], sites: int, sync: SyncConfig) -> None:
    if len(shares) != sites or min(shares) < 1:
        raise UserError(f"is {list(shares)}", where="sites.shares", fix=f"give {sites} whole numbers from 1 on")
    if sync.kind is not SyncKind.exact and len(set(shares)) > 1:
        raise UserError(
            "sites that average their parameters count equally, whatever they read",
            where="sites.shares",
            fix="leave it out, or use sync=exact, which weights by tokens",
        )


def _validate_name(name: str | None) -> None:
    if name is not None and (not name or "/" in name or name in (".", "..")):
        raise UserError(f"{name!r} cannot name a folder", where="sites.name", fix="use letters, digits and dashes")


def _validate_lane(lane: LaneConfig, topology: Topology) -> None:
    for name in ("streams", "chunk_bytes", "buffer_bytes"):
        value = getattr(lane, name)
        if value is not None and value < 1:
            raise UserError(f"is {value}", where=f"lane.{name}", fix="it starts at 1")
    if lane.streams > 64:
        raise UserError(f"is {lane.streams}", where="lane.streams", fix="at most 64")
    if lane.chunk_bytes < 4096:
        raise UserError(f"is {lane.chunk_bytes}", where="lane.chunk_bytes", fix="at least 4096")
    if lane.deadline_seconds <= 0:
        raise UserError(f"is {lane.deadline_seconds}", where="lane.deadline_seconds", fix="it must be positive")
    port_range(lane)
    with socket.socket() as probe:
        control_congestion(probe, lane.congestion)
