"""The nodes of a site: one leads, the others follow its orders, and each hears when ranks of another have failed.

The leader opens a store on its node and writes the address into the run folder, which all nodes of a site share: no
name has to be resolved and no port agreed upon. torchrun's agents meet in the same store.
"""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from isthmus.errors import EXIT_NODE_LOST, EXIT_OK, UserError
from isthmus.files import write_json
from isthmus.launch.agent import Ended, Meeting

_PAUSE_SECONDS = 0.2
_ALIVE_SECONDS = 2.0
_LEAVE_SECONDS = 10.0
_MEETING = "meeting.json"


@dataclass(frozen=True)
class Order:
    """What the nodes do next: run an attempt, or end with an exit code."""

    number: int
    nodes: tuple[int, ...] = ()  # that take part; the others stand by
    ends: bool = False
    code: int = 0


@dataclass(frozen=True)
class Timing:
    """How long nodes wait for one another."""

    join_seconds: float = 600.0
    lost_seconds: float = 60.0  # without a sign of life
    grace_seconds: float = 10.0  # for ranks to say why they fail, when another node's have failed


class Crew(Protocol):
    """The nodes of a site, as their leader sees them."""

    @property
    def names(self) -> Mapping[int, str]:
        """Of the nodes that are there."""

    def run(self, order: Order) -> Meeting: ...

    def trouble(self, order: Order) -> str | None:
        """Return why the ranks of this node have to be ended, if they have to."""
        ...

    def collect(self, order: Order, ended: Ended | None, frozen: Callable[[], bool]) -> dict[int, Ended]:
        """Return how every node's ranks ended; a node that was lost has EXIT_NODE_LOST.

        Args:
            ended: how this node's did; None if it stood by.
            frozen: says whether a rank has shown no sign of life for too long; then all are ended.
        """
        ...

    def end(self, code: int) -> None: ...


class Alone:
    """One node."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self.names: Mapping[int, str] = {0: socket.gethostname()}

    def run(self, order: Order) -> Meeting:
        return Meeting(f"{self._run_id}-{order.number}")

    def trouble(self, order: Order) -> str | None:
        return None

    def collect(self, order: Order, ended: Ended | None, frozen: Callable[[], bool]) -> dict[int, Ended]:
        assert ended is not None
        return {0: ended}

    def end(self, code: int) -> None:
        pass


class _Member:
    """What leader and followers share: the store, and a sign of life every few seconds."""

    def __init__(self, store: Any, node: int, timing: Timing) -> None:
        self._store, self._node, self._timing = store, node, timing
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()  # one request at a time: a store's client is one connection
        self._left = threading.Event()
        threading.Thread(target=self._live, daemon=True).start()

    def say(self, key: str, value: Any) -> None:
        with self._lock:
            self._store.set(key, json.dumps(value))

    def hear(self, key: str) -> Any:
        """Return what was said under a key, or None: a `get` would wait for it, and keep everybody else waiting."""
        with self._lock:
            return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def silent(self, node: int) -> bool:
        """Return whether a node has not given a sign of life for too long, by this node's clock."""
        key = f"alive/{node}"
        with self._lock:
            value = self._store.get(key) if self._store.check([key]) else b""
        before, since = self._seen.get(key, (None, 0.0))
        if value != before:
            self._seen[key] = value, time.monotonic()
            return False
        return time.monotonic() - since > self._timing.lost_seconds

    def leave(self) -> None:
        self._left.set()

    def _live(self) -> None:
        count = 0
        while not self._left.wait(_ALIVE_SECONDS):
            count += 1
            with suppress(Exception):  # whoever waits for the store finds out that it is gone
                self.say(f"alive/{self._node}", count)


class Leader(_Member):
    """Opens the meeting, gives the orders, notices who is lost.

    Args:
        address: of this node, for the others.
        name: of this node.
        expected: nodes that were started, this one included.
        needed: nodes that have to be there before anything can run.
    """

    def __init__(
        self, folder: Path, launch_id: str, *, address: str, port: int, name: str, expected: int, needed: int,
        timing: Timing,
    ) -> None:  # fmt: skip
        from torch.distributed import TCPStore

        try:
            store = TCPStore(address, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"cannot listen on {address}:{port}: {str(error).splitlines()[0]}",
                where="meeting_port",
                fix="choose a free port, or leave it out",
            ) from None
        super().__init__(store, 0, timing)
        self._endpoint, self._address, self._launch_id = f"{address}:{store.port}", address, launch_id
        self._expected, self._needed, self._name = expected, needed, name
        self.lost: set[int] = set()
        write_json(folder / _MEETING, {"launch": launch_id, "address": address, "port": store.port})

    @property
    def names(self) -> Mapping[int, str]:
        found = {0: self._name}
        for node in range(1, self._expected):
            if node not in self.lost and (here := self.hear(f"here/{node}")) is not None:
                found[node] = str(here)
        return found

    def wait(self) -> None:
        """Wait until enough nodes are there; a spare may come later.

        Raises:
            UserError: they do not come.
        """
        deadline = time.monotonic() + self._timing.join_seconds
        spares_until = time.monotonic() + self._timing.grace_seconds
        while (count := len(self.names)) < self._expected:
            if count >= self._needed and time.monotonic() > spares_until:
                return
            if time.monotonic() > deadline:
                absent = [str(node) for node in range(self._expected) if node not in self.names]
                raise UserError(
                    f"node {', '.join(absent)} did not come within {self._timing.join_seconds:.0f} s",
                    where="nodes",
                    fix="is it running, does it see the run folder, and does it reach the first node?",
                )
            time.sleep(_PAUSE_SECONDS)

    def run(self, order: Order) -> Meeting:
        self.say(f"order/{order.number}", asdict(order))
        return _meeting(self._launch_id, order, self._endpoint, self._address, self._timing)

    def trouble(self, order: Order) -> str | None:
        for node in order.nodes:
            if node and node not in self.lost and self.silent(node):
                self.lost.add(node)
                self.say(f"failed/{order.number}", node)
                return f"node {node} has given no sign of life for {self._timing.lost_seconds:.0f} s"
        return _failed_elsewhere(self, order)

    def collect(self, order: Order, ended: Ended | None, frozen: Callable[[], bool]) -> dict[int, Ended]:
        found = {} if ended is None else {0: ended}
        failed = ended is not None and ended.code != EXIT_OK
        if failed:
            self.say(f"failed/{order.number}", 0)
        while missing := [node for node in order.nodes if node not in found]:
            for node in missing:
                if (said := self.hear(f"ended/{order.number}/{node}")) is not None:
                    found[node] = Ended(**{**said, "ranks": tuple(said["ranks"])})
                elif node in self.lost or self.silent(node):
                    self.lost.add(node)
                    found[node] = Ended(EXIT_NODE_LOST)
                    self.say(f"failed/{order.number}", node)
            if missing and not failed and frozen():
                failed = True
                self.say(f"failed/{order.number}", 0)
            time.sleep(_PAUSE_SECONDS)
        return found

    def end(self, code: int) -> None:
        """Let the others leave first: srun ends all tasks when the first leaves with a failure."""
        number = 0
        while self.hear(f"order/{number}") is not None:
            number += 1
        nodes = [node for node in self.names if node]
        self.say(f"order/{number}", asdict(Order(number, ends=True, code=code)))
        deadline = time.monotonic() + _LEAVE_SECONDS
        while time.monotonic() < deadline and any(self.hear(f"left/{node}") is None for node in nodes):
            time.sleep(_PAUSE_SECONDS)
        self.leave()


class Follower(_Member):
    """Does what the leader says."""

    def __init__(self, folder: Path, launch_id: str, *, node: int, name: str, timing: Timing) -> None:
        store, self._endpoint, self._address = _find_meeting(folder / _MEETING, launch_id, timing.join_seconds)
        super().__init__(store, node, timing)
        self._launch_id = launch_id
        self.say(f"here/{node}", name)

    def next_order(self, number: int) -> Order | None:
        """Return the leader's order, or None if the leader is gone."""
        try:
            while (said := self.hear(f"order/{number}")) is None:
                if self.silent(0):
                    return None
                time.sleep(_PAUSE_SECONDS)
        except Exception:
            # The store has ended with the leader's process.
            return None
        return Order(**{**said, "nodes": tuple(said["nodes"])})

    def run(self, order: Order) -> Meeting:
        return _meeting(self._launch_id, order, self._endpoint, self._address, self._timing)

    def takes_part(self, order: Order) -> bool:
        return self._node in order.nodes

    def trouble(self, order: Order) -> str | None:
        try:
            return "the first node is lost" if self.silent(0) else _failed_elsewhere(self, order)
        except Exception:
            return "the first node is gone"

    def report(self, order: Order, ended: Ended) -> None:
        with suppress(Exception):  # a leader that is gone is noticed at the next order
            self.say(f"ended/{order.number}/{self._node}", asdict(ended))
            if ended.code:
                self.say(f"failed/{order.number}", self._node)

    def end(self) -> None:
        with suppress(Exception):
            self.say(f"left/{self._node}", True)
        self.leave()


def own_name_and_address(interface: str | None, name: str | None = None) -> tuple[str, str]:
    """Return how this node is called, and where others of its site reach it.

    Raises:
        UserError: the interface has no address, or there is no route to find one by.
    """
    from isthmus.parallelism.sites.dialing import own_address

    try:
        # Nothing is sent: the kernel says which address a packet to the documentation's network would leave from.
        address = own_address(interface, ("192.0.2.1", 9))
    except UserError as error:
        fix = "name the network interface inside the site"
        raise UserError(error.what, where="sites.at.SITE.interface", fix=fix) from None
    return name or socket.gethostname(), address


def _meeting(launch_id: str, order: Order, endpoint: str, address: str, timing: Timing) -> Meeting:
    # All agents are there: the one that is last has ranks to end first. One that does not come is lost.
    join_seconds = 2 * timing.lost_seconds + timing.grace_seconds
    return Meeting(f"{launch_id}-{order.number}", len(order.nodes), endpoint, address, join_seconds)


def _failed_elsewhere(member: _Member, order: Order) -> str | None:
    node = member.hear(f"failed/{order.number}")
    return None if node is None else f"ranks of node {node} have failed"


def _find_meeting(path: Path, launch_id: str, patience_seconds: float) -> tuple[Any, str, str]:
    """Return the leader's store, its address, and the address of this node that routes to it."""
    from torch.distributed import TCPStore

    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        with suppress(OSError, ValueError, KeyError, RuntimeError):
            written = json.loads(path.read_text())
            if written["launch"] == launch_id:
                host, port = written["address"], int(written["port"])
                with socket.create_connection((host, port), timeout=5) as probe:
                    own = str(probe.getsockname()[0])
                store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))
                return store, f"{host}:{port}", own
        time.sleep(_PAUSE_SECONDS)
    raise UserError(
        f"the first node has not opened the meeting in {patience_seconds:.0f} s",
        where=str(path),
        fix="is it running, do all nodes see this folder, and do they reach the first one?",
    )


def blamed(order: Sequence[int], ends: Mapping[int, Ended], cause: int | None) -> int | None:
    """Return the node that an attempt failed on, if it was the machine's doing: lost, or a rank died of a signal there.

    Args:
        cause: the rank whose error says that its device is broken.
    """
    for node in order:
        if ends[node].code == EXIT_NODE_LOST:
            return node
    signalled = [node for node in order if ends[node].code < 0 and not ends[node].killed]
    aborted = [node for node in signalled if ends[node].code == -signal.SIGABRT]
    for node in order:
        if (node in signalled and node not in aborted) or (cause is not None and cause in ends[node].ranks):
            return node
    # NCCL aborts ranks on all nodes because of one: on which, several do not say.
    return aborted[0] if len(aborted) == 1 else None
