"""What happens inside: the first process of a run's namespaces, and the program, which it starts behind all walls.

The first process is not the program: it has the rights to set the stage, and the kernel treats it differently (signals
that it does not handle do nothing to it). When it ends, the kernel kills all that is left in its process namespace.
"""

import fcntl
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.data.synthetic.sandbox import landlock, linux, root, seccomp
from isthmus.data.synthetic.sandbox.python import run_python

USER = 1000  # the program's user and group, in its user namespace
STATUS = struct.Struct("!iddq")  # return code, CPU seconds, wall seconds, bytes
_FIRST_FREE = 4  # descriptors of the program: standard input, output, error, results
_STACK_BYTES = 8 << 20
_DESCRIPTORS = 128


@dataclass(frozen=True)
class Stage:
    """What is the same for all runs of one sandbox.

    Args:
        own: processes that count against the program's limit, because their user is the same.
        filters: for programs that may start others, and for those that may not.
    """

    landlock_abi: int
    reads: tuple[str, ...]
    filters: dict[bool, bytes]
    own: int


@dataclass(frozen=True)
class Start:
    """One run, as the first process gets it; `pipes` are its ends for output, errors, results and status."""

    main: str
    arguments: Sequence[str]
    options: Sequence[str]
    files: dict[str, bytes]
    stdin: bytes
    limits: dict[str, Any]
    interpreter: dict[str, Any]
    pipes: tuple[int, int, int, int]


def first_process(stage: Stage, start: Start) -> None:
    """Set the scratch folder up, run the program, report how it ended, and end everything with this process."""
    status = start.pipes[3]
    try:
        linux.die_with(signal.SIGKILL)
        limits = start.limits
        linux.unshare(linux.CLONE_NEWNS)
        root.mount_scratch(owner=USER, size_bytes=limits["scratch_bytes"], files=limits["files"])
        os.chdir(root.SCRATCH)
        for name, content in start.files.items():
            _write(name, content)
        stdin = _sealed(start.stdin)
        began = time.monotonic()
        program = os.fork()
        if program == 0:
            _become_program(stage, start, stdin)
        for descriptor in start.pipes[:3]:
            os.close(descriptor)
        while True:
            ended, code, usage = os.wait4(-1, 0)  # whatever its parents have left is reaped too
            if ended == program:
                break
        wall = time.monotonic() - began
        code = os.waitstatus_to_exitcode(code)
        os.write(status, STATUS.pack(code, usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024))
    except BaseException as error:
        _fail(status, error)
    finally:
        os._exit(0)


def _become_program(stage: Stage, start: Start, stdin: int) -> None:
    """Confine this process and become the program; never returns."""
    status = start.pipes[3]
    try:
        _descriptors(stdin, *start.pipes)
        status = _FIRST_FREE
        _set_limits(start.limits, start.interpreter["reserved_bytes"], stage.own)
        os.umask(0o077)
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
        linux.drop_capabilities()
        python = start.interpreter["name"] == "python"
        landlock.restrict(
            stage.landlock_abi,
            read=stage.reads,
            execute=[] if python else start.interpreter["starts"],
            devices=root.DEVICES,
            scratch=root.SCRATCH,
        )
        seccomp.install(stage.filters[start.limits["processes"] > 1])
        if not python:
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):  # exec would keep it so
                signal.signal(ignored, signal.SIG_DFL)
            command = start.interpreter["command"]
            os.execve(command, [command, *start.options, start.main, *start.arguments], {})
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(status)
        status = -1
        run_python(f"{root.SCRATCH}/{start.main}", start.arguments)
    except BaseException as error:
        if status >= 0:
            _fail(status, error)
    finally:
        os._exit(127)


def _descriptors(stdin: int, *pipes: int) -> None:
    """Lay them out from 0 on, the status pipe last, which a started program does not inherit; close all others."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in (stdin, *pipes)]
    for wanted, descriptor in enumerate(high):
        os.dup2(descriptor, wanted, inheritable=wanted < _FIRST_FREE)
    os.closerange(_FIRST_FREE + 1, 1024)


def _set_limits(limits: dict[str, Any], reserved_bytes: int, own: int) -> None:
    # The kernel limits the memory of each process, and counts threads as processes: all together get the whole.
    processes = limits["processes"]
    memory = limits["memory_bytes"] // processes
    tasks = processes if processes > 1 else limits["threads"]
    for what, soft, hard in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + 1),
        (resource.RLIMIT_DATA, memory, memory),
        (resource.RLIMIT_AS, memory + reserved_bytes, memory + reserved_bytes),
        (resource.RLIMIT_STACK, _STACK_BYTES, _STACK_BYTES),
        (resource.RLIMIT_NPROC, tasks + own, None),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], None),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS, None),
        (resource.RLIMIT_CORE, 0, None),
        (resource.RLIMIT_MEMLOCK, 0, None),
        (resource.RLIMIT_MSGQUEUE, 0, None),
        (resource.RLIMIT_SIGPENDING, 128, None),
        (resource.RLIMIT_RTPRIO, 0, None),
    ):
        ceiling = resource.getrlimit(what)[1]
        wanted = (soft, soft if hard is None else hard)
        if ceiling != resource.RLIM_INFINITY:
            wanted = (min(wanted[0], ceiling), min(wanted[1], ceiling))
        resource.setrlimit(what, wanted)


def _write(name: str, content: bytes) -> None:
    folders = name.split("/")[:-1]
    for depth in range(1, len(folders) + 1):
        folder = "/".join(folders[:depth])
        os.makedirs(folder, exist_ok=True)
        os.chown(folder, USER, USER)
    with open(name, "xb") as file:
        file.write(content)
    os.chown(name, USER, USER)


def _sealed(content: bytes) -> int:
    """Return a descriptor that reads the content, and that nobody can write to."""
    descriptor = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _fail(status: int, error: BaseException) -> None:
    """Say that the sandbox could not be set up; longer than a status, so that it cannot be taken for one."""
    line = sys.exc_info()[2]
    while line is not None and line.tb_next is not None:
        line = line.tb_next
    where = f"{line.tb_frame.f_code.co_name}:{line.tb_lineno}" if line else "?"
    os.write(status, f"{'!' * STATUS.size}{type(error).__name__}: {error} ({where})".encode()[:4000])
