"""Starts the ranks of a site, and starts them again when they fail: the policy table, put to work.

The supervisor of a site's first node decides; those of its other nodes follow. What it decides is printed, and kept in
`launch/supervisor.json` of the run folder.
"""

import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from isthmus.config import to_yaml
from isthmus.errors import EXIT_BUG, EXIT_GAVE_UP, EXIT_HANG, EXIT_INTERRUPTED, EXIT_NODE_LOST, EXIT_OK, EXIT_REQUEUE
from isthmus.fault_tolerance.heartbeat import HeartbeatMonitor
from isthmus.fault_tolerance.policy import Action, RetryBudget, rule_for
from isthmus.fault_tolerance.store import Store
from isthmus.files import write_atomically, write_json
from isthmus.launch.agent import Ended, Ranks
from isthmus.launch.crew import Alone, Crew, Follower, Order, blamed
from isthmus.train.config import Config
from isthmus.train.timeouts import silence_seconds

_WATCH_SECONDS = 0.5
_FAILURES_OF_A_NODE = 2  # in a row, without a new step: then it is left out
STATE = "launch/supervisor.json"
EXCLUDED = "launch/excluded"
_MOVED = "launch/moved"  # the step that was reached when ranks kept dying on a node, and the job left it


class Supervisor:
    """Runs attempt after attempt of one site.

    Args:
        folder: of the run, of this site.
        ranks: of this node.
        crew: all nodes of the site; this one leads.
        needed: nodes that take part in an attempt; further ones are spares.
        can_move: whoever started this starts it again on other nodes after EXIT_NODE_LOST.
        grace_seconds: for ranks to say why they fail, when another node's have failed.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        ranks: Ranks,
        crew: Crew | None = None,
        *,
        needed: int = 1,
        can_move: bool = False,
        grace_seconds: float = 10.0,
    ) -> None:
        self._config, self._folder, self._ranks, self._needed = config, folder, ranks, needed
        self._crew: Crew = crew or Alone(f"{folder.parent.name}-{os.getpid()}")
        self._can_move, self._grace_seconds = can_move, grace_seconds
        self._budget = RetryBudget(config.restart.without_progress, best_step=self._reached_step())
        self._attempts = 0
        self._names: dict[int, str] = {}  # of the nodes, also of one that was lost
        self._excluded: dict[int, str] = {}
        self._blamed: list[int] = []  # the node of each failure since the last new step
        self._said: list[str] = []
        self._unwanted = unwanted(config, folder)

    def run(self) -> int:
        """Return the exit code of the last attempt, EXIT_NODE_LOST or EXIT_GAVE_UP."""
        with self._ranks.listening():
            code = self._run()
            self._keep("ended", code)
            self._crew.end(code)
            return code

    def _run(self) -> int:
        while True:
            if self._ranks.request is not None:
                return self._requested()
            nodes = self._chosen()
            if nodes is None:
                return self._lacks_nodes()
            before = self._outcome_mark()
            ends = self._attempt(nodes)
            rank, code, changed = self._first_failure(nodes, ends, before)
            if self._ranks.request is not None and code != EXIT_OK:
                by_hand = self._ranks.request is signal.SIGINT
                return EXIT_INTERRUPTED if by_hand else self._after_request(code)
            rule = rule_for(code)
            if code == EXIT_NODE_LOST:
                rule = dataclasses.replace(rule, action=Action.restart)  # on the others, if they are enough
            if rule.action is not Action.restart:
                return code
            reached = self._reached_step()
            if code < 0:
                # Ended by a signal, it could not say anything itself.
                self._tell(f"rank {rank} ended by {signal.Signals(-code).name}; see {self._folder}/logs")
            self._blame(nodes, ends, changed, reached)
            advanced = reached > self._budget.best_step
            if not self._budget.allows(rule, reached):
                return self._give_up(code, reached)
            self._tell(f"{rule.meaning} (exit code {code}) after step {max(reached, 0)}: starting again")
            self._keep("restarting", code)
            if not advanced:
                self._pause()
            if self._config.checkpoint.resume == "never" and not any(path.exists() for path in self._unwanted):
                # That was for what was there before, which is set aside: what was saved since is worth keeping.
                checkpoint = dataclasses.replace(self._config.checkpoint, resume="auto")
                self._config.checkpoint = checkpoint

    def _pause(self) -> None:
        ends = time.monotonic() + self._config.restart.delay_seconds
        while self._ranks.request is None and time.monotonic() < ends:
            time.sleep(min(0.1, self._config.restart.delay_seconds))

    def _requested(self) -> int:
        return EXIT_INTERRUPTED if self._ranks.request is signal.SIGINT else EXIT_REQUEUE

    def _after_request(self, code: int) -> int:
        """A rank that is told to stop before it listens dies of the signal: the scheduler's wish all the same."""
        if self._ranks.cut_short:
            self._tell("the ranks had no time left to save: what they did since the last checkpoint is lost")
        return EXIT_REQUEUE if code < 0 or rule_for(code).action is not Action.end else code

    def _give_up(self, code: int, reached: int) -> int:
        if self._budget.limit == 0:
            return code if code > 0 else EXIT_BUG
        self._tell(
            f"no new step in {self._budget.fruitless} attempts: it ends each time at step {max(reached, 0)}, last with "
            f"'{rule_for(code).meaning}'; see {self._folder}/outcome.json and logs"
        )
        return EXIT_GAVE_UP

    def _present(self) -> list[int]:
        self._names |= self._crew.names
        return [node for node in sorted(self._crew.names) if node not in self._excluded]

    def _chosen(self) -> tuple[int, ...] | None:
        """Return the first nodes that are there and not left out; None if there are too few."""
        present = self._present()
        return tuple(present[: self._needed]) if len(present) >= self._needed else None

    def _lacks_nodes(self) -> int:
        names, reached = list(self._excluded.values()), self._reached_step()
        path, moved = self._folder / EXCLUDED, self._folder / _MOVED
        with suppress(OSError, ValueError):
            before = path.read_text().splitlines() if path.exists() else []  # of earlier jobs
            if self._blamed and before and moved.exists() and reached <= int(moved.read_text()):
                self._tell(f"ranks die on {', '.join(names)} as on the nodes before, at step {max(reached, 0)}")
                return EXIT_GAVE_UP
            write_atomically(path, "".join(f"{name}\n" for name in dict.fromkeys([*before, *names])).encode())
            if self._blamed:
                write_atomically(moved, f"{reached}\n".encode())
        self._tell(f"without {', '.join(names)} too few nodes are left: to be started again on others")
        return EXIT_NODE_LOST

    def _blame(self, nodes: tuple[int, ...], ends: dict[int, Ended], outcome: dict[str, Any], reached: int) -> None:
        """Leave out a node that was lost, or on which attempts without a new step keep failing, if others can do it."""
        if reached > self._budget.best_step:
            self._blamed.clear()
        # A device that is broken is reported by its rank.
        broken = "CUDA error" in str(outcome.get("error", "")) and "rank" in outcome
        lost = [node for node in nodes if ends[node].code == EXIT_NODE_LOST]
        for gone in lost:
            self._leave_out(gone, "it was lost")
        node = blamed(nodes, ends, int(outcome["rank"]) if broken else None)
        if lost:
            self._blamed.clear()  # what failed with it may have been a consequence
        if lost or node is None:
            return
        self._blamed.append(node)
        again = self._blamed[-_FAILURES_OF_A_NODE:] == [node] * _FAILURES_OF_A_NODE
        replaceable = self._can_move or len(self._present()) > self._needed
        if again and replaceable:
            self._leave_out(node, f"{_FAILURES_OF_A_NODE} failures in a row without a new step")

    def _leave_out(self, node: int, why: str) -> None:
        self._excluded[node] = self._names[node]
        self._tell(f"{self._names[node]} is left out: {why}")

    def _attempt(self, nodes: tuple[int, ...]) -> dict[int, Ended]:
        """Run all ranks of all nodes to their end; return how each node's ended."""
        write_atomically(self._folder / "config.yaml", to_yaml(self._config).encode())
        order = Order(self._attempts, nodes)
        self._attempts += 1
        self._keep("running")
        pulse = HeartbeatMonitor(self._folder, silence_seconds(self._config))
        meeting = self._crew.run(order)

        def trouble() -> str | None:
            return self._crew.trouble(order) or pulse.lost()

        def frozen() -> bool:
            if (why := pulse.lost()) is not None:
                tell(f"{why}: ending the ranks of all nodes")
            return why is not None

        ended = None
        if 0 in nodes:
            with watching(self._ranks, trouble, self._grace_seconds):
                ended = self._ranks.run(meeting)
        return self._crew.collect(order, ended, frozen)

    def _first_failure(
        self, nodes: tuple[int, ...], ends: dict[int, Ended], before: tuple[int, int] | None
    ) -> tuple[int, int, dict[str, Any]]:
        """Return the rank that failed first, its exit code, and the outcome if it has left one."""
        failed = [ends[node] for node in nodes if ends[node].code != EXIT_OK]
        if not failed:
            return 0, EXIT_OK, {}
        # Two attempts may fail with the same words.
        changed = self._outcome() if self._outcome_mark() != before else {}
        # Of a rank that hung and had to be killed, the watchdog has written so.
        if changed.get("exit_code") == EXIT_HANG:
            return int(changed.get("rank", failed[0].rank)), EXIT_HANG, changed
        # What a machine or a signal has ended could say nothing; the others' errors are consequences.
        said = isinstance(changed.get("exit_code"), int)
        silent = [end for end in failed if end.code == EXIT_NODE_LOST or (end.code < 0 and not end.killed)]
        # But NCCL and assertions abort a rank because of another's error.
        silent = [end for end in silent if end.code != -signal.SIGABRT or not said]
        if silent:
            first = min(silent, key=lambda end: (end.code != EXIT_NODE_LOST, end.code == -signal.SIGABRT))
            return first.rank, first.code, changed
        # The first rank that failed has written why; those that failed because of it may be noticed earlier.
        if said:
            return int(changed.get("rank", failed[0].rank)), int(changed["exit_code"]), changed
        first = min(failed, key=lambda end: end.killed)
        return first.rank, first.code, changed

    def _outcome_mark(self) -> tuple[int, int] | None:
        """Return what tells one writing of outcome.json from another."""
        with suppress(OSError):
            found = (self._folder / "outcome.json").stat()
            return found.st_mtime_ns, found.st_ino
        return None

    def _outcome(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            outcome = json.loads((self._folder / "outcome.json").read_text())
            if isinstance(outcome, dict):
                return outcome
        return {}

    def _reached_step(self) -> int:
        """Return the last step that the run is known to have made."""
        steps = [entry.step for entry in Store(self._folder / "checkpoints").scan() if entry.manifest is not None]
        with suppress(OSError, ValueError, IndexError):
            lines = (self._folder / "metrics.jsonl").read_bytes().splitlines()
            steps.append(int(json.loads(lines[-1])["step"]))
        return max(steps, default=-1)

    def _tell(self, line: str) -> None:
        self._said.append(line)
        tell(line)
        with suppress(OSError):
            (self._folder / "logs").mkdir(exist_ok=True)
            with (self._folder / "logs" / "supervisor.log").open("a", encoding="utf-8") as file:
                # As logging's asctime, which `isthmus launch logs` merges by.
                now = time.time()
                stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
                file.write(f"{stamp},{int(now * 1000) % 1000:03d} INFO supervisor: {line}\n")

    def _keep(self, state: str, code: int | None = None) -> None:
        """Write down where things stand, for `isthmus launch status`."""
        with suppress(OSError):
            write_json(
                self._folder / STATE,
                {
                    "state": state,
                    "exit_code": code,
                    "attempts": self._attempts,
                    "nodes": list(self._crew.names.values()),
                    "excluded": list(self._excluded.values()),
                    "said": self._said[-3:],
                    "host": socket.gethostname(),
                    "process": os.getpid(),
                    "time": time.time(),
                },
            )


def follow(ranks: Ranks, crew: Follower, *, grace_seconds: float = 10.0) -> int:
    """Do what the leader of the site says, to the end; return 0 after an order to end, whose code is the leader's."""
    number = 0
    with ranks.listening():
        while True:
            order = crew.next_order(number)
            if order is None:
                tell("the first node is gone")
                return EXIT_NODE_LOST
            if order.ends:
                crew.end()
                return EXIT_OK
            if crew.takes_part(order):

                def trouble(order: Order = order) -> str | None:
                    return crew.trouble(order)

                with watching(ranks, trouble, grace_seconds):
                    ended = ranks.run(crew.run(order))
                crew.report(order, ended)
            number += 1


@contextmanager
def watching(ranks: Ranks, trouble: Callable[[], str | None], grace_seconds: float) -> Iterator[None]:
    """Within: ranks are told of requests, and are ended when there is trouble that they may not notice themselves."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            ranks.remind()
            if (why := trouble()) is not None:
                if not over.wait(grace_seconds):
                    tell(f"{why}: ending the ranks of this node")
                while not over.wait(_WATCH_SECONDS):
                    ranks.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def unwanted(config: Config, folder: Path) -> list[Path]:
    """Return the checkpoints that checkpoint.resume=never is about: the first attempt sets them aside."""
    if config.checkpoint.resume != "never":
        return []
    store = Store(folder / "checkpoints")
    return [*(found.folder for found in store.scan()), *store.lost()]


def tell(line: str) -> None:
    print(f"isthmus: {line}", file=sys.stderr, flush=True)
