"""Processes that work through tasks, and what becomes of a task whose process dies."""

import contextlib
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from isthmus.data.prepare.config import PrepareData
from isthmus.data.prepare.folder import WorkFolder
from isthmus.data.prepare.guard import page_at_death
from isthmus.data.prepare.worker import Task, guard_path, worker_main
from isthmus.errors import UserError

_ATTEMPTS = 3
# A fresh interpreter with fixed hashing: nothing that a library does with sets can differ between two processes.
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass
class _Slot:
    number: int
    process: Any
    connection: Connection
    task: int | None = None


class Pool:
    """A fixed number of worker processes.

    Used as a context: on leaving it, whatever the reason, every process is gone.
    """

    def __init__(self, workers: int, config: PrepareData, folder: WorkFolder) -> None:
        self._count, self._config, self._folder = workers, config, folder
        self._context = multiprocessing.get_context("spawn")
        self._slots: list[_Slot] = []
        self._killed_at: Counter[bytes] = Counter()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self._slots:
            slot.process.kill()
            slot.process.join()
            slot.connection.close()
        self._slots.clear()

    def run(
        self,
        tasks: Sequence[Task],
        on_done: Callable[[Task], None],
        on_progress: Callable[[Task, int, int], None],
        on_backstop: Callable[[bytes, str], None] = lambda page, reason: None,
    ) -> None:
        """Carry out the tasks in any order.

        Raises:
            UserError: a task was refused, or its process died time and again without a page to blame.
            RuntimeError: a bug of ours, with the worker's traceback.
        """
        waiting = deque(range(len(tasks)))
        deaths: Counter[int] = Counter()
        while len(self._slots) < min(self._count, len(tasks)):
            self._slots.append(self._start(len(self._slots)))
        busy = 0
        while waiting or busy:
            for slot in self._slots:
                if slot.task is None and waiting:
                    slot.task = waiting.popleft()
                    with contextlib.suppress(OSError):  # a process that is dead already: noticed below
                        slot.connection.send(tasks[slot.task])
            busy = 0
            wait([slot.connection for slot in self._slots if slot.task is not None], timeout=1.0)
            for slot in self._slots:
                if slot.task is None:
                    continue
                number = slot.task
                state = self._receive(slot, tasks[number], on_done, on_progress)
                if state == "dead":
                    deaths[number] += self._mourn(slot, on_backstop)
                    if deaths[number] >= _ATTEMPTS:
                        raise UserError(
                            f"a worker died {_ATTEMPTS} times at the same work ({_name(tasks[number])})",
                            where="workers",
                            fix="if memory ran out, take fewer workers; finished work is kept",
                        )
                    waiting.appendleft(number)
                busy += slot.task is not None

    def _receive(
        self,
        slot: _Slot,
        task: Task,
        on_done: Callable[[Task], None],
        on_progress: Callable[[Task, int, int], None],
    ) -> str:
        """Take what a worker sent; return `dead` if it ended."""
        try:
            while slot.task is not None and slot.connection.poll():
                kind, value = slot.connection.recv()
                if kind == "progress":
                    on_progress(task, *value)
                elif kind == "done":
                    slot.task = None
                    on_done(task)
                elif kind == "refused":
                    what, where, fix = value
                    raise UserError(what, where=where, fix=fix)
                else:
                    raise RuntimeError(f"in {_name(task)}:\n{value}")
        except (EOFError, ConnectionError):
            return "dead"
        return "alive" if slot.process.is_alive() or slot.task is None or slot.connection.poll() else "dead"

    def _mourn(self, slot: _Slot, on_backstop: Callable[[bytes, str], None]) -> int:
        """Replace a dead worker; journal the page that it died of, or return 1 if there is none to blame."""
        slot.process.join()
        slot.connection.close()
        code = slot.process.exitcode
        page = page_at_death(guard_path(self._folder, slot.number))
        blameless = 1
        if page is not None:
            # SIGKILL may come from outside (a person, a kernel short of memory): blamed only the second time.
            self._killed_at[page] += 1
            if code == -signal.SIGPROF:
                on_backstop(page, "took too much CPU time")
                blameless = 0
            elif code != -signal.SIGKILL or self._killed_at[page] > 1:
                on_backstop(page, f"ended its process ({_signal_name(code)})")
                blameless = 0
        replacement = self._start(slot.number)
        slot.process, slot.connection, slot.task = replacement.process, replacement.connection, None
        return blameless

    def _start(self, number: int) -> _Slot:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=worker_main, args=(theirs, self._config, Path(self._folder.out), number), daemon=True
        )
        with _environment(_ENVIRONMENT):
            process.start()
        theirs.close()
        return _Slot(number, process, ours)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _name(task: Task) -> str:
    found = getattr(task, "unit", None) or getattr(task, "plan", None) or task
    return str(getattr(found, "name", type(task).__name__))


def _signal_name(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
