"""Run a preflight's ranks in forked processes, and plant faults in them."""

import contextlib
import io
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from isthmus.config import compose
from isthmus.launch.preflight import observe
from isthmus.launch.preflight.config import PreflightRunConfig, this_site
from isthmus.launch.preflight.observe import Rank
from isthmus.launch.preflight.rank import preflight
from isthmus.parallelism.sites.dialing import Listener
from support.ranks import RankWorld

# Short: what is planted is large.
QUICK = ["train.steps=1", "train.global_batch=12", "lane.streams=2", "preflight.matmul_seconds=0.2"]
QUICK += ["preflight.disk_mb=2", "preflight.link_seconds=0.5", "preflight.wait_seconds=30"]
_STOP_AND_GO = """
import os, signal, sys, time
print(flush=True)
while os.getppid() == int(sys.argv[1]):
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(0.19)
    os.kill(os.getppid(), signal.SIGCONT)
    time.sleep(0.01)
"""


def run_rank(rank: Rank, words: Sequence[str], *, clock: Callable[[], float]) -> dict[str, Any] | None:
    """Run one rank here; return the exit code and, on rank 0, what it printed as JSON."""
    config = compose(PreflightRunConfig, "preflight", words)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        code = preflight(this_site(config).config, config.preflight, rank, as_json=True, clock=clock)
    if rank.rank:
        return None
    assert out.getvalue(), err.getvalue()
    return {"code": code, "table": err.getvalue(), **json.loads(out.getvalue())}


def node_rank(world: RankWorld, port: int, words: list[str], faults: dict[int, list[str]]) -> dict[str, Any] | None:
    """Rank function: each rank is a node of its own, some of them with faults."""
    import time

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    rank = Rank(world.rank, world.size, 0, 1, f"node{world.rank}")
    mine = faults.get(world.rank, [])
    with contextlib.ExitStack() as stack:
        for fault in mine:
            if fault in PLANTS:
                stack.enter_context(PLANTS[fault]())
        ahead = 30.0 if "clock" in mine else 0.0
        return run_rank(rank, words, clock=lambda: time.time() + ahead)


def cluster_rank(world: RankWorld, ports: list[int], words: list[str]) -> dict[str, Any] | None:
    """Rank function of `support.ranks.run_sites`: sites of several machines, of a rank each, over loopback."""
    import time

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[world.site]), "GLOO_SOCKET_IFNAME": "lo"}
    own = [f"sites.name=site{world.site}", "sites.names=[site0,site1]", f"sites.store={world.store}"]
    rank = Rank(world.rank, world.size, 0, 1, f"site{world.site}-node{world.rank}")
    return run_rank(rank, [*words, *own], clock=time.time)


def site_rank(
    world: RankWorld, tell: Callable[[Any], None], words: list[str], by_site: list[list[str]], faults: list[list[str]]
) -> dict[str, Any] | None:
    """Rank function of `support.wan`: a site of one rank, told and faulty like its place in the lists says."""
    import time

    names = [f"site{number}" for number in range(world.sites)]
    own = [f"sites.name=site{world.site}", f"sites.names=[{','.join(names)}]", f"sites.store={world.store}"]
    mine = faults[world.site]
    with contextlib.ExitStack() as stack:
        for fault in mine:
            if fault in PLANTS:
                stack.enter_context(PLANTS[fault]())
        ahead = 30.0 if "clock" in mine else 0.0
        more = [*words, *own, *by_site[world.site]]
        return run_rank(Rank(0, 1, 0, 1, f"machine{world.site}"), more, clock=lambda: time.time() + ahead)


@contextlib.contextmanager
def wrong_version() -> Iterator[None]:
    """Another megatron-core comes first on the path, as after a pip install --user that somebody forgot."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder, "megatron_core-0.15.2.dist-info")
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: megatron-core\nVersion: 0.15.2\n")
        sys.path.insert(0, folder)
        yield
        sys.path.remove(folder)


@contextlib.contextmanager
def few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def slow_products() -> Iterator[None]:
    """While this rank multiplies, another process stops it for nineteen twentieths of the time.

    And it gets the processor last: on a machine where all wait for one, a rank that is stopped would lose little else.
    The rest of the preflight is left alone, which would take twenty times as long.
    """
    original = observe.matmul

    def throttled(*words: Any) -> dict[str, Any]:
        before = os.getpriority(os.PRIO_PROCESS, 0)
        stop = [sys.executable, "-S", "-c", _STOP_AND_GO, str(os.getpid())]
        with subprocess.Popen(stop, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            os.setpriority(os.PRIO_PROCESS, 0, 19)
            try:
                return original(*words)
            finally:
                other.kill()
                os.kill(os.getpid(), signal.SIGCONT)
                with contextlib.suppress(PermissionError):
                    os.setpriority(os.PRIO_PROCESS, 0, before)

    observe.matmul = throttled
    yield
    observe.matmul = original


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    os.kill(os.getpid(), signal.SIGSTOP)
    yield


@contextlib.contextmanager
def deaf_ports() -> Iterator[None]:
    """The kernel drops whatever comes for this process's listening ports, as a firewall does: no answer at all."""
    original = Listener.open
    drop_all = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K: keep 0 bytes

    def open_deaf(**words: Any) -> Listener:
        import ctypes

        listener = original(**words)
        program = ctypes.create_string_buffer(drop_all, len(drop_all))
        filter_ = struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
        listener.server.setsockopt(socket.SOL_SOCKET, 26, filter_)  # SO_ATTACH_FILTER
        return listener

    Listener.open = staticmethod(open_deaf)  # type: ignore[method-assign, assignment]
    yield
    Listener.open = original  # type: ignore[method-assign]


PLANTS = {
    "version": wrong_version,
    "files": few_files,
    "slow": slow_products,
    "frozen": frozen,
    "deaf": deaf_ports,
}


def failed(result: dict[str, Any], status: str = "fail") -> list[tuple[str, str]]:
    """Return (check, where) of what failed."""
    return [(found["check"], found["where"]) for found in result["findings"] if found["status"] == status]


def the(result: dict[str, Any], check: str, where: str) -> dict[str, Any]:
    """Return the one finding of a check at a place."""
    (found,) = (found for found in result["findings"] if (found["check"], found["where"]) == (check, where))
    return found
