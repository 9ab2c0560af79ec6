"""Real lanes between sites that are threads of one process."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from isthmus.parallelism.sites.dialing import Listener, Party
from isthmus.parallelism.sites.tcp import TcpLane, connect


def party(site: int, sites: int, *, token: bytes = b"", streams: int = 2, lane: int = 0, hello: bytes = b"") -> Party:
    names = [f"site{number}" for number in range(sites)]
    return Party(site=site, names=names, lane=lane, hello=hello, token=token, streams=streams, buffer_bytes=None)


def connect_all(
    parties: list[Party], *, deadline_seconds: float = 20.0, chunk_bytes: int = 4096, wait_seconds: float = 10.0
) -> list[TcpLane | Exception]:
    """Connect the sites with each other; return each one's lane, or why it got none."""
    listeners = [Listener.open(host="127.0.0.1", port_range=None) for _ in parties]

    def join(number: int) -> TcpLane | Exception:
        others = {other: listener.address for other, listener in enumerate(listeners) if other != number}
        try:
            return connect(
                listeners[number],
                parties[number],
                others,
                deadline_seconds=deadline_seconds,
                chunk_bytes=chunk_bytes,
                wait_seconds=wait_seconds,
            )
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(parties)) as pool:
        lanes = list(pool.map(join, range(len(parties))))
    for listener in listeners:
        listener.close()
    return lanes


@contextmanager
def lanes(sites: int, *, streams: int = 2, deadline_seconds: float = 20.0) -> Iterator[list[TcpLane]]:
    """Yield a lane for each site."""
    opened = connect_all(
        [party(site, sites, streams=streams) for site in range(sites)], deadline_seconds=deadline_seconds
    )
    good = [lane for lane in opened if isinstance(lane, TcpLane)]
    assert len(good) == sites, opened
    try:
        yield good
    finally:
        with ThreadPoolExecutor(sites) as pool:
            list(pool.map(TcpLane.close, good))
