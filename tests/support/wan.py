"""Sites that are forked processes in network namespaces of their own, joined by the lab's relay."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest

from isthmus.errors import UserError
from isthmus.launch.lab.links import Links, Shape
from isthmus.launch.lab.linux import CLONE_NEWNET, setns
from isthmus.launch.lab.network import ShapedNetwork
from support.ranks import RankWorld, start_process

STORE_PORT = 29400


class Sites:
    """One process a site; each does `call(RankWorld, tell, *args)`, tells what it likes and answers at the end."""

    def __init__(self, network: ShapedNetwork, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.network = network
        count = len(network.addresses)
        self.processes, self._pipes = [], []
        for site in range(count):
            where = f"/proc/{os.getpid()}/fd/{network.descriptor(site)}"
            world = RankWorld(0, 1, "", site, count, f"{network.addresses[0]}:{STORE_PORT}")
            process, pipe = start_process(_enter, (where, call, world, args), talks=True)
            self.processes.append(process)
            self._pipes.append(pipe)

    def hear(self, site: int, timeout: float = 120.0) -> Any:
        """Return the next thing that a site tells or answers.

        Raises:
            AssertionError: it failed, or said nothing.
        """
        pipe: Connection = self._pipes[site]
        assert pipe.poll(timeout), f"site {site} said nothing for {timeout} s"
        failed, answer = pipe.recv()
        assert not failed, answer
        return answer

    def kill(self, site: int) -> None:
        os.kill(self.processes[site].pid, signal.SIGKILL)

    def freeze(self, site: int) -> None:
        os.kill(self.processes[site].pid, signal.SIGSTOP)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def sites_over_links(
    call: Callable[..., Any], *args: Any, sites: int = 2, links: Links | None = None, **shape: Any
) -> Iterator[Sites]:
    """Yield running sites; skips the test where namespaces are not permitted."""
    names = [f"site{number}" for number in range(sites)]
    try:
        network = ShapedNetwork(links or Links.uniform(names, Shape(**shape)))
    except UserError as error:
        pytest.skip(str(error))
    try:
        running = Sites(network, call, args)
        try:
            yield running
        finally:
            running.close()
    finally:
        network.close()


def _enter(tell: Callable[[Any], None], where: str, call: Callable[..., Any], world: RankWorld, args: Any) -> Any:
    import torch

    torch.set_num_threads(1)
    namespace = os.open(where, os.O_RDONLY)
    setns(namespace, CLONE_NEWNET)
    os.close(namespace)
    return call(world, tell, *args)
