"""The sites' networks: shaped links through the relay, or plain loopback. Both run commands in a site."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, Protocol

from isthmus.launch.lab.links import Links, Shape
from isthmus.launch.lab.namespaces import Namespace, open_namespace
from isthmus.processes import die_with_parent

Counts = dict[tuple[int, int], dict[str, int]]  # (source, target) -> packets, wire_bytes, tcp_payload_bytes, dropped


class SiteNetwork(Protocol):
    """Where the sites of a lab live."""

    @property
    def addresses(self) -> Sequence[str]:
        """Of each site."""

    def start(
        self, site: int, command: Sequence[str], *, environment: Mapping[str, str] | None = None, output: IO[Any] | None
    ) -> "subprocess.Popen[bytes]":
        """Start a command in a site; both output streams go to `output` (None: to the lab's own)."""
        ...

    def counts(self) -> Counts:
        """Return what each link has been given to carry so far; empty where nobody counts."""
        ...

    def close(self) -> None: ...


class ShapedNetwork:
    """Namespaces joined by the relay. Use it from one thread, whose end would end everything started from it."""

    def __init__(self, links: Links, *, seed: int = 0) -> None:
        self.addresses = [f"10.77.0.{site + 1}" for site in range(len(links.names))]
        self._counts: Counts = {}
        self._changed = threading.Condition()
        self._namespaces: list[Namespace] = []
        try:
            for address in self.addresses:
                # With loss, chance must meet single packets.
                self._namespaces.append(open_namespace(address, offload=not links.lossy))
            self._relay = self._start_relay(links, seed)
        except BaseException:
            for namespace in self._namespaces:
                namespace.close()
            raise
        self._reader = threading.Thread(target=self._read_counts, daemon=True)
        self._reader.start()

    def start(
        self, site: int, command: Sequence[str], *, environment: Mapping[str, str] | None = None, output: IO[Any] | None
    ) -> "subprocess.Popen[bytes]":
        network = self._namespaces[site].network
        return subprocess.Popen(
            [sys.executable, "-m", "isthmus.launch.lab.jail", str(network), "--", *command],
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            pass_fds=[network],
            start_new_session=True,  # Ctrl-C reaches the lab, which passes it on
        )

    def descriptor(self, site: int) -> int:
        """Return an open descriptor of a site's namespace."""
        return self._namespaces[site].network

    def counts(self) -> Counts:
        with self._changed:
            return dict(self._counts)

    def settled_counts(self) -> Counts:
        """Return the counts once nothing has moved for a while."""
        before: Counts | None = None
        while before != (now := self.counts()):
            before = now
            time.sleep(1.2)  # the relay counts twice a second
        return now

    def reshape(self, source: int, target: int, shape: Shape) -> None:
        """Change one direction of a link while it is in use."""
        self._order(source, target, _orders(shape))

    def cut(self, source: int, target: int, *, cut: bool = True) -> None:
        """Drop everything that one direction of a link is given, or carry it again."""
        self._order(source, target, {"cut": cut})

    def close(self) -> None:
        """Let the relay make its last count, then remove everything."""
        assert self._relay.stdin
        self._relay.stdin.close()
        self._relay.wait()
        self._reader.join()
        for namespace in self._namespaces:
            namespace.close()

    def _start_relay(self, links: Links, seed: int) -> "subprocess.Popen[bytes]":
        devices = [namespace.device for namespace in self._namespaces]
        orders = {
            "devices": devices,
            "seed": seed,
            "links": [{"from": a, "to": b, "set": _orders(shape)} for (a, b), shape in links.shapes.items()],
        }
        return subprocess.Popen(
            [sys.executable, "-m", "isthmus.launch.lab.relay", json.dumps(orders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=devices,
            start_new_session=True,
        )

    def _order(self, source: int, target: int, orders: dict[str, Any]) -> None:
        assert self._relay.stdin
        self._relay.stdin.write(json.dumps({"from": source, "to": target, "set": orders}).encode() + b"\n")
        self._relay.stdin.flush()

    def _read_counts(self) -> None:
        assert self._relay.stdout
        for line in self._relay.stdout:
            counts = {(entry.pop("from"), entry.pop("to")): entry for entry in json.loads(line)["links"]}
            with self._changed:
                self._counts = counts


class LoopbackNetwork:
    """All sites on loopback, each with an address of its own; nothing is shaped or counted."""

    def __init__(self, sites: int) -> None:
        self.addresses = [f"127.0.0.{site + 2}" for site in range(sites)]

    def start(
        self, site: int, command: Sequence[str], *, environment: Mapping[str, str] | None = None, output: IO[Any] | None
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            list(command),
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def counts(self) -> Counts:
        return {}

    def close(self) -> None:
        pass


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    # In a namespace the machine's own name leads nowhere: ranks of a site meet on loopback.
    return {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1", **(more or {})}


def _orders(shape: Shape) -> dict[str, Any]:
    queue = shape.queue_bytes()
    return {
        "rate": shape.bytes_per_second(),
        "delay": shape.rtt_ms / 2000,
        "jitter": shape.jitter_ms / 1000,
        "loss": shape.loss,
        "queue_bytes": None if queue == float("inf") else queue,
    }
