"""One node's part of one attempt: torchrun's agent in this process, with no restarts and no signals of its own.

The agent makes every failure of a rank exit code 1 and kills 30 s after SIGTERM; here requests to stop go straight to
the ranks, which finish their step and save.
"""

import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from isthmus.errors import EXIT_BUG, EXIT_OK
from isthmus.launch.sites_file import Affinity
from isthmus.processes import DIE_WITH_PARENT

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


@dataclass(frozen=True)
class Meeting:
    """Where the agents of an attempt meet; by default this one is alone."""

    run_id: str
    nodes: int = 1
    endpoint: str | None = None  # of a store that is there already
    address: str = "localhost"  # of this node; its own name may lead nowhere
    join_seconds: float = 600.0  # for the others to come


@dataclass(frozen=True)
class Ended:
    """How the ranks of a node ended: the first that failed, and its exit code (minus the signal that ended it)."""

    code: int = EXIT_OK
    rank: int = 0
    ranks: tuple[int, ...] = ()  # all that failed here
    killed: bool = False  # by their supervisor, because of something elsewhere


class Ranks:
    """The ranks of this node, attempt after attempt.

    Args:
        arguments: of each rank.
        module: that python runs as a rank.
        program: in its place, for a rank that binds itself.
        patience_seconds: after SIGUSR2, which announces a limit, ranks that are still there are killed; None: never.
    """

    def __init__(
        self,
        processes: int,
        arguments: Sequence[str],
        *,
        module: str = "isthmus.train",
        program: Sequence[str] | None = None,
        affinity: Affinity = Affinity.none,
        patience_seconds: float | None = None,
    ) -> None:
        self._processes, self._patience = processes, patience_seconds
        if program is None:
            bound = ("-m", "isthmus.launch.rank", "--affinity", affinity.name, module)
            program = ("-m", module) if affinity is Affinity.none else bound
        self._arguments = [*program, *arguments]
        self._killed = False
        self._told: set[int] = set()  # processes that know of the request
        self.request: signal.Signals | None = None
        self.cut_short = False  # ranks were killed before they had done what was requested

    def run(self, meeting: Meeting) -> Ended:
        """Run all ranks to their end."""
        from torch.distributed import DistError
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        os.environ[DIE_WITH_PARENT] = "1"
        self._killed = False
        # The agent's own scratch files, which it would leave behind.
        configs = {"is_host": False, "join_timeout": math.ceil(meeting.join_seconds)}
        with tempfile.TemporaryDirectory(prefix="isthmus-launch-") as scratch:
            agent = LaunchConfig(
                min_nodes=meeting.nodes,
                max_nodes=meeting.nodes,
                nproc_per_node=self._processes,
                run_id=meeting.run_id,
                rdzv_backend="c10d",
                rdzv_endpoint=meeting.endpoint or "localhost:0",
                rdzv_configs={} if meeting.endpoint is None else configs,
                local_addr=meeting.address,
                max_restarts=0,
                monitor_interval=0.1,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
                signals_to_handle="SIGQUIT",
            )
            try:
                elastic_launch(agent, sys.executable)(*self._arguments)
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                return Ended(failure.exitcode, rank, tuple(sorted(error.failures)), self._killed)
            except (RendezvousError, DistError) as error:
                # Another agent was lost before all had met: its supervisor, or the leader, knows more.
                reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
                print(f"isthmus: the agents of the nodes have not met: {reason[0]}", file=sys.stderr, flush=True)
                return Ended(EXIT_BUG, killed=True)
        return Ended()

    @property
    def threads(self) -> int:
        """OMP_NUM_THREADS of a rank, unless somebody has set it: its share of the cores that this process may use."""
        return max(1, len(os.sched_getaffinity(0)) // self._processes)

    def kill(self) -> None:
        """End the ranks at once."""
        self._killed = True
        _signal_children(signal.SIGKILL)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within: requests to stop are remembered and passed on to the ranks."""
        before = {number: signal.signal(number, self._pass_on) for number in _REQUESTS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR2 and self._patience is not None:
            timer = threading.Timer(self._patience, self._cut_short)
            timer.daemon = True
            timer.start()
            self._patience = None
        self.request = self.request or signal.Signals(number)
        # The agent starts ranks in sessions of their own: a terminal's Ctrl-C does not reach them by itself.
        self._told |= _signal_children(number)

    def _cut_short(self) -> None:
        self.cut_short = bool(_signal_children(signal.SIGKILL))

    def remind(self) -> None:
        """Tell ranks of a request that came before they were started."""
        if self.request is not None:
            self._told |= _signal_children(self.request, but=self._told)


def _signal_children(number: int, but: Set[int] = frozenset()) -> set[int]:
    children = {child for child in _children() if child not in but}
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, number)
    return children


def _children() -> list[int]:
    """Return the processes that this one has started. Linux only, as ranks that die with their launcher are."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += [_number_here(word) for word in path.read_text().split()]
    return found


def _number_here(process: str) -> int:
    """In a site of the lab, which has a process namespace of its own, /proc still tells the machine's numbers."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])
