"""Run a function on several ranks: processes forked from one server that has torch and megatron loaded already."""

import contextlib
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

_PRELOADED = ["isthmus.train.entry", "isthmus.train.assembly"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_PRELOADED)


@dataclass(frozen=True)
class RankWorld:
    """What a rank function is told about itself; `init_method` is where the ranks meet."""

    rank: int
    size: int
    init_method: str
    site: int = 0
    sites: int = 1
    store: str = ""  # where sites meet, host:port


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 900.0) -> list[Any]:
    """Call `function(RankWorld, *args)` on every rank and return the results in order of rank.

    The function must be importable (a top-level function of a test module).

    Raises:
        AssertionError: a rank failed (its traceback is the message) or took longer than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-ranks-") as folder:
        worlds = [RankWorld(rank, world_size, f"file://{folder}/store") for rank in range(world_size)]
        return run_processes([(_call, (function, world, args)) for world in worlds], timeout)


def run_sites(
    function: Callable[..., Any], sites: int, ranks: int, *args: Any, timeout: float = 900.0
) -> list[list[Any]]:
    """Call `function(RankWorld, *args)` on every rank of several sites; return the results by site and rank.

    Each site is a world of its own, as under one torchrun each. Raises what `run_ranks` raises.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-sites-") as folder:
        store = f"127.0.0.1:{free_port()}"
        worlds = [
            RankWorld(rank, ranks, f"file://{folder}/store{site}", site, sites, store)
            for site in range(sites)
            for rank in range(ranks)
        ]
        flat = run_processes([(_call, (function, world, args)) for world in worlds], timeout)
    return [flat[site * ranks : (site + 1) * ranks] for site in range(sites)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_processes(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], timeout: float) -> list[Any]:
    """Run each call in a forked process of its own and return what they answer; end them all if one fails."""
    started = [start_process(target, args) for target, args in calls]
    processes, pipes = [process for process, _ in started], [pipe for _, pipe in started]
    try:
        return _collect(pipes, timeout)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def start_process(target: Callable[..., Any], args: tuple[Any, ...], *, talks: bool = False) -> tuple[Any, Connection]:
    """Start a call in a forked process; return it and the pipe on which (failed, answer) comes.

    One that `talks` gets a function as its first argument, with which it may send answers before the last one.
    """
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_body, args=(theirs, target, args, talks), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _collect(pipes: list[Connection], timeout: float) -> list[Any]:
    answers: dict[int, Any] = {}
    waiting = {pipe: index for index, pipe in enumerate(pipes)}
    while waiting:
        ready = wait(list(waiting), timeout)
        assert ready, f"processes {sorted(waiting.values())} did not answer within {timeout} s"
        for pipe in ready:
            assert isinstance(pipe, Connection)
            index = waiting.pop(pipe)
            try:
                failed, answer = pipe.recv()
            except EOFError:
                failed, answer = True, "it died without an answer"
            assert not failed, f"process {index}: {answer}"
            answers[index] = answer
    return [answers[index] for index in range(len(pipes))]


def _body(pipe: Connection, target: Callable[..., Any], args: tuple[Any, ...], talks: bool) -> None:
    try:
        told = (lambda what: pipe.send((False, what)),) if talks else ()
        pipe.send((False, target(*told, *args)))
    except BaseException:
        pipe.send((True, traceback.format_exc()))


def _call(function: Callable[..., Any], world: RankWorld, args: tuple[Any, ...]) -> Any:
    import torch

    torch.set_num_threads(1)
    return function(world, *args)


@dataclass(frozen=True)
class CommandResult:
    code: int
    out: str
    err: str


def isthmus_cli(*words: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> CommandResult:
    """Run the `isthmus` command in a forked process and return exit code, standard output and standard error."""
    with tempfile.TemporaryDirectory(prefix="isthmus-cli-") as folder:
        (code,) = run_processes([(_command, (words, folder, cwd, environment or {}))], timeout=2400)
        return CommandResult(code, Path(folder, "out").read_text(), Path(folder, "err").read_text())


def _command(words: Sequence[str], folder: str, cwd: Path | None, environment: dict[str, str]) -> int:
    from isthmus.launch.cli import main

    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    for name, descriptor in (("out", 1), ("err", 2)):
        target = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(target, descriptor)
    with contextlib.suppress(SystemExit):
        code = main(list(words))
    sys.stdout.flush()
    sys.stderr.flush()
    return code
