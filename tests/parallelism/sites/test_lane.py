"""Lanes carry bytes, count them, and fail with the name of the site that is gone."""

import os
import socket
import time

import pytest
from support.lanes import connect_all, lanes, party

from isthmus.errors import UserError
from isthmus.parallelism.sites import tcp
from isthmus.parallelism.sites.dialing import Listener, own_address
from isthmus.parallelism.sites.lane import LaneError
from isthmus.parallelism.sites.tcp import TcpLane, limit_unsent

CHUNK_HEADER = 28
SO_MAX_PACING_RATE = 47  # asm-generic/socket.h


@pytest.mark.parametrize("sites", [2, 3])
@pytest.mark.parametrize("size", [0, 1, 4096, 100_001])
def test_messages_arrive_whole_whatever_the_order(sites: int, size: int) -> None:
    contents = {(site, tag): os.urandom(size) for site in range(sites) for tag in (1, 2, 3)}
    with lanes(sites) as opened:
        waiting = {}
        for site, lane in enumerate(opened):
            # Every site begins with another one.
            for tag in [(site + shift) % 3 + 1 for shift in range(3)]:
                payloads = {peer: contents[site, tag] for peer in range(sites) if peer != site}
                waiting[site, tag] = lane.exchange(tag, payloads)
        for (site, tag), exchange in waiting.items():
            arrived = exchange.wait()
            assert exchange.done()
            assert {peer: bytes(content) for peer, content in arrived.items()} == {
                peer: contents[peer, tag] for peer in range(sites) if peer != site
            }


def test_every_byte_is_counted() -> None:
    size = 100_000
    with lanes(2) as (first, second):
        exchanges = [lane.exchange(7, {1 - lane.site: bytes(size)}) for lane in (first, second)]
        for exchange in exchanges:
            exchange.wait()
        chunks = -(-size // 4096)
        assert first.bytes_sent == second.bytes_received == size + chunks * CHUNK_HEADER
        assert second.bytes_sent == first.bytes_received == size + chunks * CHUNK_HEADER


@pytest.mark.parametrize("small_ones_behind", [0, 3])
def test_a_message_of_one_chunk_is_shared_by_all_connections(small_ones_behind: int) -> None:
    size, streams = 1 << 18, 4
    opened = connect_all([party(site, 2, streams=streams) for site in range(2)], chunk_bytes=size)
    first, second = (lane for lane in opened if isinstance(lane, TcpLane))
    sizes = [size] + [16] * small_ones_behind
    for tag, length in enumerate(sizes):
        first.exchange(tag, {1: bytes(length)})
    for tag in range(len(sizes)):
        second.exchange(tag, {0: b""}).wait()
    # Each chunk is half of what would be a connection's fair share of the rest, as long as that is above 16 KiB.
    chunks, left = 0, size
    while left > 0:
        chunks, left = chunks + 1, left - max(left // (2 * streams), 1 << 14)
    headers = second.bytes_received - sum(sizes)
    assert headers == (chunks + small_ones_behind) * CHUNK_HEADER
    for lane in (first, second):
        lane.close()


def test_what_lies_unsent_follows_the_rate_of_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as connection:
        for rate, unsent in [(2_000_000, 100_000), (1_000, 1 << 15)]:
            connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
            limit_unsent(connection)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == unsent


def test_want_of_memory_here_is_not_the_other_sites_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with lanes(2) as (first, second):
        monkeypatch.setattr(tcp, "_Message", _no_memory)
        second.exchange(1, {0: b"hello"})
        with pytest.raises(RuntimeError, match="lane 0 to site site1 failed here") as caught:
            first.exchange(1, {1: b"hello"}).wait()
        assert isinstance(caught.value.__cause__, MemoryError)


def _no_memory(total: int, *, pinned: bool) -> None:
    raise MemoryError(f"no room for {total} bytes")


def test_a_site_that_leaves_is_named() -> None:
    with lanes(3) as opened:
        exchange = opened[0].exchange(1, {1: b"a", 2: b"b"})
        opened[2].exchange(1, {0: b"c", 1: b"d"})
        opened[1].close()
        with pytest.raises(LaneError, match="lane 0 to site site1: the connection was closed") as caught:
            exchange.wait()
        assert caught.value.site == "site1"
        # Whatever is begun later fails at once too.
        with pytest.raises(LaneError, match="site1"):
            opened[0].exchange(2, {1: b""}).wait()


def test_a_site_that_leaves_for_the_sake_of_another_names_it() -> None:
    with lanes(3) as opened:
        exchange = opened[0].exchange(1, {1: b"a", 2: b"b"})
        noticed = opened[1].exchange(1, {0: b"c", 2: b"d"})
        opened[0].exchange(2, {1: b"", 2: b""})
        opened[2].close()
        with pytest.raises(LaneError, match="site2"):
            noticed.wait()
        opened[1].exchange(2, {0: b""})
        opened[1].close()
        # Site 1's own message has come; what it never sent is site 2's fault.
        with pytest.raises(LaneError) as caught:
            opened[0].take(1, 3)
        assert caught.value.site == "site2"
        assert "says site1" in str(caught.value)
        with pytest.raises(LaneError, match="site2"):
            exchange.wait()


def test_what_a_site_sent_before_it_left_still_counts() -> None:
    with lanes(2) as (first, second):
        theirs = second.exchange(1, {0: b"goodbye"})
        ours = first.exchange(1, {1: b"hello"})
        assert theirs.wait() == {0: b"hello"}
        second.close()
        assert ours.wait() == {1: b"goodbye"}


def test_a_silent_site_is_given_up_after_the_deadline() -> None:
    with lanes(2, deadline_seconds=0.5) as (first, _):
        started = time.monotonic()
        with pytest.raises(LaneError, match=r"site1: nothing has come for 0\.5 s"):
            first.exchange(1, {1: b"is anybody there"}).wait()
        assert time.monotonic() - started >= 0.5


def test_a_slow_site_is_not_given_up() -> None:
    """The deadline runs from the last byte, not from the beginning."""
    with lanes(2, deadline_seconds=1.0) as (first, second):
        exchange = first.exchange(9, {1: b""})
        for tag in range(4):
            time.sleep(0.5)
            second.exchange(tag, {0: b"still here"})
        second.exchange(9, {0: b"done"})
        assert exchange.wait() == {1: b"done"}


def test_a_site_with_another_secret_is_refused() -> None:
    outcomes = connect_all([party(0, 2, token=b"ours"), party(1, 2, token=b"theirs")], wait_seconds=3.0)
    assert any(isinstance(outcome, UserError) and "another secret" in str(outcome) for outcome in outcomes)
    assert not any(isinstance(outcome, TcpLane) for outcome in outcomes)


def test_strangers_are_dropped_and_the_sites_still_meet() -> None:
    """A port scanner and an old peer must not end the meeting."""
    listener = Listener.open(host="127.0.0.1", port_range=None)
    stranger = socket.create_connection(listener.address)
    stranger.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    from concurrent.futures import ThreadPoolExecutor

    from isthmus.parallelism.sites.tcp import connect

    own = Listener.open(host="127.0.0.1", port_range=None)
    options = {"deadline_seconds": 5.0, "chunk_bytes": 4096, "wait_seconds": 20.0}
    with ThreadPoolExecutor(2) as pool:
        answering = pool.submit(connect, listener, party(1, 2), {0: own.address}, **options)
        calling = pool.submit(connect, own, party(0, 2), {1: listener.address}, **options)
        pair = [calling.result(), answering.result()]
    stranger.close()
    exchanges = [lane.exchange(1, {1 - lane.site: b"x"}) for lane in pair]
    assert [bytes(next(iter(exchange.wait().values()))) for exchange in exchanges] == [b"x", b"x"]
    for lane in pair:
        lane.close()


def test_a_site_that_never_calls_is_named() -> None:
    with pytest.raises(LaneError, match=r"site0: did not connect to 127\.0\.0\.1"):
        raise _outcome_of_waiting_alone()


def _outcome_of_waiting_alone() -> Exception:
    from isthmus.parallelism.sites.tcp import connect

    listener = Listener.open(host="127.0.0.1", port_range=None)
    try:
        connect(
            listener,
            party(1, 2),
            {0: ("127.0.0.1", 9)},
            deadline_seconds=1.0,
            chunk_bytes=4096,
            wait_seconds=0.5,
        )
    except LaneError as error:
        return error
    finally:
        listener.close()
    raise AssertionError("somebody answered")


def test_ports_come_from_the_range_and_run_out() -> None:
    probe = Listener.open(host="127.0.0.1", port_range=None)
    port = probe.address[1]
    probe.close()
    taken = Listener.open(host="127.0.0.1", port_range=(port, port))
    assert taken.address[1] == port
    with pytest.raises(UserError, match="has no free port"):
        Listener.open(host="127.0.0.1", port_range=(port, port))
    taken.close()


def test_lanes_listen_where_they_are_told() -> None:
    assert own_address("lo", ("192.0.2.1", 1)) == "127.0.0.1"
    assert own_address("127.0.0.3", ("192.0.2.1", 1)) == "127.0.0.3"
    assert own_address(None, ("127.0.0.1", 1)) == "127.0.0.1"
    with pytest.raises(UserError, match=r"lane\.interface"):
        own_address("nosuch0", ("127.0.0.1", 1))
