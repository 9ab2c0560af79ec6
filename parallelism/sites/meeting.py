"""How the ranks of several sites find each other, and refuse to train together unless they are one run.

Rank 0 of the hosting site opens a store. Every rank writes there the address on which its lane listens, under an
incarnation that is drawn anew whenever the store is opened, so that what is left of an earlier attempt is never met.
Rank r of each site reads the addresses of the ranks r only. All else (who are you, do you know the secret, is your run
and its configuration mine) is settled on the lane's own connections: only there can it be said what differs.
"""

import json
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import DistStoreError, TCPStore

from isthmus.errors import EXIT_SITE_LOST, UserError
from isthmus.parallelism.sites.config import LaneConfig, SitesConfig
from isthmus.parallelism.sites.dialing import Listener, Party, own_address
from isthmus.parallelism.sites.lane import Lane
from isthmus.parallelism.sites.tcp import connect
from isthmus.parallelism.sites.validate import port_range, split_address

_PAUSE_SECONDS = 0.2
_REMINDER_SECONDS = 15.0


@dataclass(frozen=True)
class Attendance:
    """What a rank says of its site: all of it must be the same in every site, but for the name."""

    run: str
    world_size: int
    rank: int
    config: Mapping[str, Any]  # dotted key -> value, without what may differ
    again: bool = False  # the sites have met before: one that does not come is lost, and may come later

    def to_json(self, incarnation: str) -> bytes:
        described = {"run": self.run, "incarnation": incarnation, "ranks": self.world_size, "config": self.config}
        return json.dumps(described, sort_keys=True).encode()


class SiteAbsent(UserError):
    """A site did not come in time."""


@contextmanager
def meet(
    sites: SitesConfig, lane: LaneConfig, attendance: Attendance, *, tell: Callable[[str], None]
) -> Iterator[Lane]:
    """Wait for the other sites and open this rank's lane to them; close it at the end.

    Args:
        tell: shows a line to whoever waits.

    Raises:
        UserError: a site did not come in time, does not know the secret, or is set up for another run.
        LaneError: a connection failed.
    """
    deadline = time.monotonic() + sites.wait_seconds
    token = read_token(sites.token_file)
    store_address = split_address(sites.store)
    hosting = hosts_meeting(sites, attendance.rank)
    listener = Listener.open(
        host=own_address(lane.interface, store_address),
        port_range=port_range(lane),
        buffer_bytes=lane.buffer_bytes,
        congestion=lane.congestion,
    )
    try:
        store, incarnation, addresses = _attend(sites, attendance, listener.address, hosting, deadline, tell)
    except SiteAbsent as error:
        if attendance.again:
            error.exit_code = EXIT_SITE_LOST
        raise
    party = Party(
        site=sites.names.index(str(sites.name)),
        names=sites.names,
        lane=attendance.rank,
        hello=attendance.to_json(incarnation),
        token=token,
        streams=lane.streams,
        buffer_bytes=lane.buffer_bytes,
        congestion=lane.congestion,
    )
    opened = connect(
        listener,
        party,
        addresses,
        deadline_seconds=lane.deadline_seconds,
        chunk_bytes=lane.chunk_bytes,
        wait_seconds=max(deadline - time.monotonic(), 1.0),
        pinned=torch.cuda.is_available(),
    )
    try:
        for site, hello in opened.hellos.items():
            _compare(sites.names[site], attendance, incarnation, hello)
        yield opened
    finally:
        opened.close()
        listener.close()
        del store  # whoever hosts it keeps it for as long as others may still read


def _attend(
    sites: SitesConfig,
    attendance: Attendance,
    address: tuple[str, int],
    hosting: bool,
    deadline: float,
    tell: Callable[[str], None],
) -> tuple[TCPStore, str, dict[int, tuple[str, int]]]:
    """Write this rank's address into the store and read those of its lane."""
    while True:
        store = open_store(sites, hosting, deadline, tell if attendance.rank == 0 else _silent)
        with suppress(DistStoreError, RuntimeError):
            incarnation = _incarnation(store, hosting)
            prefix = f"isthmus/{incarnation}"
            mine = json.dumps(address)
            key = f"{prefix}/{sites.name}/{attendance.rank}"
            if store.compare_set(key, "", mine).decode() == mine:
                found = _others(store, prefix, sites, attendance.rank, deadline, tell)
                return store, incarnation, found
            tell(f"an earlier attempt of {sites.name} is still known to the others: waiting for them to end it")
        if time.monotonic() > deadline:
            raise _absent(sites, [sites.host or sites.names[0]])
        time.sleep(5 * _PAUSE_SECONDS)


def hosts_meeting(sites: SitesConfig, rank: int) -> bool:
    """Say whether a rank of this site opens the store."""
    return rank == 0 and sites.name == (sites.host or sites.names[0])


def open_store(sites: SitesConfig, hosting: bool, deadline: float, tell: Callable[[str], None]) -> TCPStore:
    """Open the store where sites meet, or connect to it once it is there.

    Raises:
        UserError: its port is taken, or it cannot be reached until `deadline` (of time.monotonic).
    """
    host, port = split_address(sites.store)
    if hosting:
        try:
            return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
        except (DistStoreError, RuntimeError, OSError):
            raise UserError(
                f"{sites.name} cannot listen on port {port}", where="sites.store", fix="choose a free port"
            ) from None
    reminder = time.monotonic() + 2.0
    while True:
        with suppress(OSError), socket.create_connection((host, port), timeout=5):
            return TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))
        if time.monotonic() > deadline:
            raise _absent(sites, [sites.host or sites.names[0]])
        if time.monotonic() > reminder:
            left = deadline - time.monotonic()
            tell(f"waiting for {sites.host or sites.names[0]} to open the meeting at {sites.store}, {left:.0f} s more")
            reminder = time.monotonic() + _REMINDER_SECONDS
        time.sleep(_PAUSE_SECONDS)


def _incarnation(store: TCPStore, hosting: bool) -> str:
    key = "isthmus/incarnation"
    if hosting:
        store.set(key, secrets.token_hex(8))
    return store.get(key).decode()


def _others(
    store: TCPStore, prefix: str, sites: SitesConfig, rank: int, deadline: float, tell: Callable[[str], None]
) -> dict[int, tuple[str, int]]:
    keys = {name: f"{prefix}/{name}/{rank}" for name in sites.names if name != sites.name}
    reminder = time.monotonic() + 2.0
    while absent := [name for name, key in keys.items() if not store.check([key])]:
        if time.monotonic() > deadline:
            raise _absent(sites, absent)
        if rank == 0 and time.monotonic() > reminder:
            tell(f"waiting for {', '.join(absent)} to come, {deadline - time.monotonic():.0f} s more")
            reminder = time.monotonic() + _REMINDER_SECONDS
        time.sleep(_PAUSE_SECONDS)
    found = {}
    for name, key in keys.items():
        host, port = json.loads(store.get(key))
        found[sites.names.index(name)] = (str(host), int(port))
    return found


def _compare(other: str, ours: Attendance, incarnation: str, hello: bytes) -> None:
    theirs = json.loads(hello)
    if theirs["ranks"] != ours.world_size:
        raise UserError(
            f"{ours.world_size} ranks here and {theirs['ranks']} in {other}",
            where="world size",
            fix="all sites need the same layout",
        )
    if differing := describe_differences(ours.config, theirs["config"]):
        raise UserError(f"{other} is configured differently in {differing}", where="sites", fix="make them equal")
    if (theirs["run"], theirs["incarnation"]) != (ours.run, incarnation):
        raise UserError(f"{other} is in another run, {theirs['run']}", where="run.name", fix="start all sites anew")


def describe_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return the first keys whose values differ, with both, or nothing."""
    differing = [key for key in sorted({*ours, *theirs}) if _value(ours, key) != _value(theirs, key)]
    shown = ", ".join(f"{key} ({_value(ours, key)} here, {_value(theirs, key)} there)" for key in differing[:8])
    return f"{shown} and {len(differing) - 8} more" if len(differing) > 8 else shown


def _value(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config.get(key), sort_keys=True)


def _absent(sites: SitesConfig, absent: Sequence[str]) -> SiteAbsent:
    return SiteAbsent(
        f"{', '.join(absent)} did not come within {sites.wait_seconds:.0f} s",
        where="sites.wait_seconds",
        fix=f"is it running, and does {sites.store} reach it from here?",
    )


def _silent(line: str) -> None:
    pass


def read_token(path: str | None) -> bytes:
    """Return the secret that the sites share, or nothing if they have none.

    Raises:
        UserError: the file is missing or empty.
    """
    if path is None:
        return b""
    try:
        token = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be read: {reason}", where="sites.token_file", fix="check the path") from None
    if not token:
        raise UserError(f"{path} is empty", where="sites.token_file", fix="write a secret into it")
    return token
