"""Starts the ranks of this machine, and starts them again when they fail: the policy table, put to work.

torchrun's agent makes every failure of a rank exit code 1 and kills 30 s after SIGTERM, so it runs in this process with
no restarts and no signals of its own: requests to stop go straight to the ranks, which finish their step and save.
"""

import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from isthmus.config import to_yaml
from isthmus.errors import EXIT_BUG, EXIT_GAVE_UP, EXIT_HANG, EXIT_INTERRUPTED, EXIT_OK, EXIT_REQUEUE
from isthmus.fault_tolerance.policy import Action, RetryBudget, rule_for
from isthmus.fault_tolerance.store import Store
from isthmus.fault_tolerance.watcher import ALIVE
from isthmus.files import write_atomically
from isthmus.launch.silence import Silence, listening_for
from isthmus.processes import DIE_WITH_PARENT
from isthmus.train.config import Config
from isthmus.train.timeouts import silence_seconds

_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Supervisor:
    """Runs attempt after attempt of one run.

    Args:
        folder: of the run, of this site.
        options: passed on to every rank.
    """

    def __init__(self, config: Config, folder: Path, processes: int, options: list[str]) -> None:
        self._config, self._folder, self._processes, self._options = config, folder, processes, options
        self._budget = RetryBudget(config.restart.without_progress, best_step=self._reached_step())
        self._request: signal.Signals | None = None

    def run(self) -> int:
        """Return the exit code of the last attempt, or EXIT_GAVE_UP."""
        with self._listening():
            while True:
                rank, code = self._attempt()
                if self._request is not None and code != EXIT_OK:
                    return EXIT_INTERRUPTED if self._request is signal.SIGINT else self._after_request(code)
                rule = rule_for(code)
                if rule.action is not Action.restart:
                    return code
                reached = self._reached_step()
                if code < 0:
                    # Ended by a signal, it could not say anything itself.
                    name = signal.Signals(-code).name
                    self._tell(f"rank {rank} ended by {name}; see {self._folder}/logs")
                advanced = reached > self._budget.best_step
                if not self._budget.allows(rule, reached):
                    return self._give_up(code, reached)
                self._tell(f"{rule.meaning} (exit code {code}) after step {max(reached, 0)}: starting again")
                if not advanced:
                    time.sleep(self._config.restart.delay_seconds)
                if self._request is not None:
                    return EXIT_INTERRUPTED if self._request is signal.SIGINT else EXIT_REQUEUE
                if self._config.checkpoint.resume == "never":
                    # That was for the first attempt: what it has saved since is worth keeping.
                    checkpoint = dataclasses.replace(self._config.checkpoint, resume="auto")
                    self._config.checkpoint = checkpoint

    def _after_request(self, code: int) -> int:
        """A rank that is told to stop before it listens dies of the signal: the scheduler's wish all the same."""
        return EXIT_REQUEUE if code < 0 or rule_for(code).action is Action.restart else code

    def _give_up(self, code: int, reached: int) -> int:
        if self._budget.limit == 0:
            return code if code > 0 else EXIT_BUG
        self._tell(
            f"no new step in {self._budget.fruitless} attempts: it ends each time at step {max(reached, 0)}, last with "
            f"'{rule_for(code).meaning}'; see {self._folder}/outcome.json and logs"
        )
        return EXIT_GAVE_UP

    def _attempt(self) -> tuple[int, int]:
        """Run all ranks to their end; return the rank that failed first and its exit code."""
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        threads = str(max(1, (os.cpu_count() or 1) // self._processes))
        os.environ.setdefault("OMP_NUM_THREADS", threads)
        os.environ[DIE_WITH_PARENT] = "1"
        resolved = self._folder / "config.yaml"
        write_atomically(resolved, to_yaml(self._config).encode())
        before = self._outcome()
        arguments = ["-m", "isthmus.train", "--config", str(resolved), *self._options]
        # The agent's own scratch files, which it would leave behind.
        with tempfile.TemporaryDirectory(prefix="isthmus-launch-") as scratch:
            agent = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=self._processes,
                run_id=self._folder.parent.name,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                local_addr="localhost",  # the machine's own name may lead nowhere
                max_restarts=0,
                monitor_interval=0.1,
                logs_specs=DefaultLogsSpecs(log_dir=scratch),
                signals_to_handle="SIGQUIT",
            )
            try:
                with self._hearing() as silence:
                    elastic_launch(agent, sys.executable)(*arguments)
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                outcome = self._outcome()
                if silence.broken:
                    return rank, EXIT_HANG
                # The first rank that failed has written why; those that failed because of it may be noticed earlier. Of
                # one that hung and had to be killed, the watchdog has.
                told = failure.exitcode > 0 or outcome.get("exit_code") == EXIT_HANG
                if outcome != before and told and isinstance(outcome.get("exit_code"), int):
                    return int(outcome.get("rank", rank)), int(outcome["exit_code"])
                return rank, failure.exitcode
        return 0, EXIT_OK

    def _hearing(self) -> AbstractContextManager[Silence]:
        """Within: ranks that give no sign of life, not even of their watchers, are killed."""
        if not self._config.watchdog.enabled:
            return nullcontext(Silence())
        limit = silence_seconds(self._config)

        def end_all() -> None:
            self._tell(f"no sign of life for {limit:g} s (restart.silence_seconds): ending all ranks")
            for child in _children():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

        return listening_for(self._folder / "logs" / ALIVE, limit, end_all)

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

    @contextmanager
    def _listening(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._pass_on) for number in _REQUESTS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._request = self._request or signal.Signals(number)
        for child in _children():
            with suppress(ProcessLookupError):
                # The agent starts ranks in sessions of their own: a terminal's Ctrl-C does not reach them by itself.
                os.kill(child, number)

    @staticmethod
    def _tell(line: str) -> None:
        print(f"isthmus: {line}", file=sys.stderr, flush=True)


def _children() -> list[int]:
    """Return the processes that this one has started. Linux only, as ranks that die with their launcher are."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found
