"""Between sites: every rank knocks at its counterparts' doors, and the first of each site measures the links.

Then the first ranks of all their machines fill them together. Pairs of sites take turns, so that no link is measured
while another one of the same site is: S sites need S - 1 turns (S if odd), in each of which every site is busy with one
other.
"""

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from isthmus.errors import UserError
from isthmus.launch.preflight.board import Board
from isthmus.launch.preflight.config import PreflightConfig
from isthmus.launch.preflight.doors import HINTS, Door, knock
from isthmus.launch.preflight.link import LinkEnd, fill, measure, stage_seconds
from isthmus.launch.preflight.observe import Clock, Rank
from isthmus.parallelism.sites.dialing import Listener, Party, dial, own_address
from isthmus.parallelism.sites.lane import LaneError
from isthmus.parallelism.sites.meeting import hosts_meeting, open_store, read_token
from isthmus.parallelism.sites.validate import port_range, split_address
from isthmus.train.config import Config, run_name
from isthmus.train.sites import shared_keys

_PAUSE_SECONDS = 0.2
_GRACE_SECONDS = 20.0  # beyond the wait that the user sets, for those who wait for somebody who waits
_ROSTER_SECONDS = 600.0  # whoever hosts the meeting is there, and may have a tokenizer to train
_PEER_SECONDS = 180.0  # another pair's measurement may have to end first
_DIAL_SECONDS = 15.0


class Meeting:
    """The place where the sites meet, from one rank's view; `failure` says why it cannot be reached."""

    def __init__(self, config: Config, rank: Rank, wait_seconds: float) -> None:
        self._config, self._rank = config, rank
        self._deadline = time.monotonic() + wait_seconds
        self.hosting = hosts_meeting(config.sites, rank.rank)
        self.board: Board | None = None
        self.failure: str | None = None
        self.door = Door.open
        self.present: dict[str, Any] = {}  # site -> what it said of itself

    def open(self) -> "Meeting":
        """Open the store or wait for it; never raises, so that it can run beside other checks."""
        sites = self._config.sites
        address = split_address(sites.store)
        try:
            while not self.hosting and (door := knock(address)) is not Door.open:
                self.door = door
                if time.monotonic() > self._deadline:
                    self.failure = f"{sites.store}: {HINTS[door]}"
                    return self
                time.sleep(_PAUSE_SECONDS)
            self.door = Door.open
            store = open_store(sites, self.hosting, self._deadline + _GRACE_SECONDS, lambda line: None)
            self.board = Board(store, sites.names, str(sites.name))
            if self._rank.rank == 0:
                self.board.post("site", self._about())
        except Exception as error:
            self.failure = str(error)
        return self

    def attend(self) -> None:
        """Learn who is here; the hosting site decides when the waiting ends."""
        assert self.board is not None
        board = self.board
        if self.hosting:
            wait = max(self._deadline - time.monotonic(), 0.0) + 1.0
            board.announce("roster", list(board.collect("site", wait)))
        self.present = board.collect("site", _GRACE_SECONDS, board.hear("roster", _ROSTER_SECONDS) or [])

    def _about(self) -> dict[str, Any]:
        rank, config = self._rank, self._config
        return {
            "ranks": rank.size,
            "ranks_per_node": rank.local_size,
            "run": run_name(config),
            "streams": config.lane.streams,
            "config": shared_keys(config, {}),
        }

    def leave(self) -> None:
        """Let whoever hosts the store keep it until the others have read what they need."""
        if self.board is None or self._rank.rank:
            return
        with suppress(RuntimeError):  # the store's errors are such: whoever hosts it has gone already
            self.board.post("end", True)
            if self.hosting:
                self.board.collect("end", _GRACE_SECONDS, list(self.present))


def turns(names: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Return all pairs, in turns in which no site is named twice (the circle method); the earlier site comes first."""
    seats: list[str | None] = [*names, *([None] if len(names) % 2 else [])]
    found = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        opposite = zip(seats[:half], reversed(seats[half:]), strict=True)
        pairs = [sorted((a, b), key=list(names).index) for a, b in opposite if a is not None and b is not None]
        found.append([(a, b) for a, b in pairs])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return found


def look_across(
    meeting: Meeting,
    config: Config,
    keys: PreflightConfig,
    rank: Rank,
    clock: Clock,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Return what this rank sees of its counterparts: {site: {...}}, or {"error": ...} if it cannot even listen."""
    assert meeting.board is not None
    sites, lane, board = config.sites, config.lane, meeting.board
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        try:
            token = read_token(sites.token_file)
            listener = Listener.open(
                host=own_address(lane.interface, split_address(sites.store)),
                port_range=port_range(lane),
                buffer_bytes=lane.buffer_bytes,
                congestion=lane.congestion,
            )
        except UserError as error:
            board.post(f"address/{rank.rank}", None)
            return {"error": str(error)}
        stack.callback(listener.close)
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        datagrams.bind((listener.address[0], 0))
        board.post(f"address/{rank.rank}", [*listener.address, datagrams.getsockname()[1]])
        for turn in turns(sites.names):
            pair = next((pair for pair in turn if sites.name in pair), None)
            if pair is None or not all(name in meeting.present for name in pair):
                continue
            other = pair[1] if pair[0] == sites.name else pair[0]
            if rank.rank >= meeting.present[other]["ranks"]:
                continue
            both = [meeting.present[name] for name in pair]
            streams = min(about["streams"] for about in both)
            party = Party(
                site=sites.names.index(str(sites.name)),
                names=sites.names,
                lane=rank.rank,
                hello=b"preflight",
                token=token,
                streams=streams + 1,
                buffer_bytes=lane.buffer_bytes,
                congestion=lane.congestion,
            )
            if rank.rank == 0:
                tell(f"measuring the link between {pair[0]} and {pair[1]}")
            found[other] = _look_at(other, board, listener, datagrams, party, filling_lanes(both), keys, clock)
    return found


def filling_lanes(both: Sequence[dict[str, Any]]) -> list[int]:
    """Return the ranks that fill a link together, one of each machine; none where rank 0 alone can say it."""
    step = max(about["ranks_per_node"] for about in both)
    lanes = list(range(0, min(about["ranks"] for about in both), step))
    return lanes if len(lanes) > 1 else []


def _look_at(
    other: str,
    board: Board,
    listener: Listener,
    datagrams: socket.socket,
    party: Party,
    filling: Sequence[int],
    keys: PreflightConfig,
    clock: Clock,
) -> dict[str, Any]:
    there = board.collect(f"address/{party.lane}", _PEER_SECONDS, [other]).get(other)
    if there is None:
        return {"error": f"rank {party.lane} of {other} does not listen"}
    host, port, datagram_port = there
    calling = party.names.index(other) > party.site
    topic = "/".join(["knock", *sorted((board.me, other)), str(party.lane)])
    board.post(topic, {"door": knock((host, port)).name})
    answer = board.collect(topic, _PEER_SECONDS, [board.me, other])
    if other not in answer:
        return {"error": f"rank {party.lane} of {other} stopped answering"}
    out, back = Door[answer[board.me]["door"]], Door[answer[other]["door"]]
    seen: dict[str, Any] = {
        "address": f"{host}:{port}",
        "own_address": f"{listener.address[0]}:{listener.address[1]}",
        "calling": calling,
        "door_there": out.name,
        "door_here": back.name,
    }
    if (out if calling else back) is not Door.open:
        return seen  # lanes could not be opened; what stands in the way is known
    with ExitStack() as stack:
        try:
            connections = dial(listener, party, {party.names.index(other): (host, port)}, _DIAL_SECONDS)
            sockets = [connections[party.names.index(other)][stream][0] for stream in range(party.streams)]
            for connection in sockets:
                stack.enter_context(connection)
            end = LinkEnd(sockets[0], sockets[1:], datagrams, (host, datagram_port), calling)
            topic = "/".join(["fill", *sorted((board.me, other))])
            if party.lane == 0:
                seen["link"] = measure(end, probes=keys.probes, seconds=keys.link_seconds, clock=clock)
                board.post(topic, stage_seconds(keys.link_seconds, seen["link"]["rtt_seconds"]))
            if party.lane in filling and (told := board.collect(topic, _PEER_SECONDS, [board.me])):
                seen["together"] = fill(end, told[board.me])
        except (OSError, LaneError, UserError) as error:
            seen["error"] = str(error)
    return seen
