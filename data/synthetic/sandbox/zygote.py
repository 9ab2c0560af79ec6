"""A process inside the sandbox's namespaces that starts one program after another, and the process that makes it.

`launcher` (outside the process namespace) -> `zygote` (its first process) -> per run: a watcher ->
`inside.first_process` in namespaces of its own -> the program. When any of them ends, the kernel ends all that come
after it. The zygote itself touches neither what a program reads nor what it writes: a later program, which starts with
a copy of its memory, finds nothing there.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import Any

from isthmus.data.synthetic.sandbox import frames, inside, landlock, linux, root, seccomp

_NAMESPACES = (
    ("user", linux.CLONE_NEWUSER),
    ("mount", linux.CLONE_NEWNS),
    ("process", linux.CLONE_NEWPID),
    ("network", linux.CLONE_NEWNET),
    ("IPC", linux.CLONE_NEWIPC),
    ("host name", linux.CLONE_NEWUTS),
    ("control group", linux.CLONE_NEWCGROUP),
)


class _Impossible(Exception):
    """The machine does not permit a part of the sandbox."""


def main(descriptor: int, package: str) -> None:
    """Be the launcher; called in a fresh interpreter that has nothing but a socket to its owner."""
    connection = socket.socket(fileno=descriptor)
    sys.path.remove(package)
    try:
        owner = os.pidfd_open(os.getppid())
        config, _ = frames.receive(connection)
        own = _enter_namespaces(connection, config)
        zygote = os.fork()
        if zygote == 0:
            _be_zygote(connection, owner, config, own)
        connection.close()
        os.waitpid(zygote, 0)
    except frames.Closed:
        pass
    except _Impossible as error:
        frames.send(connection, {"impossible": str(error)})
    except Exception:
        frames.send(connection, {"bug": traceback.format_exc()})


def _enter_namespaces(connection: socket.socket, config: dict[str, Any]) -> int:
    """Leave the machine behind; return how many of our processes have the same user as programs will."""
    for name, flag in _NAMESPACES:
        with _part(f"{name} namespaces"):
            linux.unshare(flag)
        if flag == linux.CLONE_NEWUSER:
            # Only a process outside may give this one more than one user.
            frames.send(connection, {"wants": "users"})
            mapped, _ = frames.receive(connection)
            if mapped.get("impossible"):
                raise _Impossible(f"user namespaces: {mapped['impossible']}")
            if mapped["two"]:
                os.setresgid(0, 0, 0)
                os.setresuid(0, 0, 0)
    socket.sethostname("sandbox")
    with _part("mounts in a user namespace"):
        root.build(config["reads"])
    return 0 if mapped["two"] else 4  # launcher, zygote, watcher, first process


def _be_zygote(connection: socket.socket, owner: int, config: dict[str, Any], own: int) -> None:
    """Serve runs until the owner goes; never returns."""
    try:
        linux.die_with(signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one signal that Python would handle as first process
        with _part("Landlock"):
            version = landlock.abi()
        filters = {processes: seccomp.program(processes=processes) for processes in (False, True)}
        stage = inside.Stage(version, tuple(config["reads"]), filters, own)
        frames.send(connection, {"ready": True, "landlock": version})
        gc.collect()
        gc.freeze()  # so that children do not copy pages only to visit what is on them
        while True:
            if owner in select.select([connection.fileno(), owner], [], [])[0]:
                break
            watcher = os.fork()
            if watcher == 0:
                _watch(connection, owner, config, stage)
            if os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1]) != 0:
                break
    except frames.Closed:
        pass
    except _Impossible as error:
        frames.send(connection, {"impossible": str(error)})
    except BaseException:
        with contextlib.suppress(frames.Closed):
            frames.send(connection, {"bug": traceback.format_exc()})
    finally:
        os._exit(0)


def _watch(connection: socket.socket, owner: int, config: dict[str, Any], stage: inside.Stage) -> None:
    """Receive a run, start it, watch it and answer; never returns."""
    code = 1
    try:
        linux.die_with(signal.SIGKILL)
        header, parts = frames.receive(connection)
        answer, texts = _serve(connection, owner, config, stage, header, parts)
        frames.send(connection, answer, texts)
        code = 0
    except frames.Closed:
        pass
    except BaseException:
        with contextlib.suppress(frames.Closed):
            frames.send(connection, {"bug": traceback.format_exc()})
    finally:
        os._exit(code)


def _serve(
    connection: socket.socket,
    owner: int,
    config: dict[str, Any],
    stage: inside.Stage,
    header: dict[str, Any],
    parts: list[bytes],
) -> tuple[dict[str, Any], list[bytes]]:
    pipes = [os.pipe() for _ in range(4)]
    start = inside.Start(
        main=header["main"],
        arguments=header["arguments"],
        options=header["options"],
        files=dict(zip(header["files"], parts[1:], strict=True)),
        stdin=parts[0],
        limits=header["limits"],
        interpreter=config["interpreters"][header["language"]],
        pipes=(pipes[0][1], pipes[1][1], pipes[2][1], pipes[3][1]),
    )
    linux.unshare(linux.CLONE_NEWPID)  # for the next child
    first = os.fork()
    if first == 0:
        inside.first_process(stage, start)
    for _, writing in pipes:
        os.close(writing)
    reading = [descriptor for descriptor, _ in pipes]
    run = _Run(first, reading, owner, connection)
    ended = run.watch(header["limits"]["wall_seconds"], header["limits"]["output_bytes"])
    status = run.texts[3]
    answer: dict[str, Any] = {"ended": ended, "code": None, "memory": 0}
    answer |= {"cpu": run.cpu_seconds, "wall": run.wall_seconds}
    if len(status) > inside.STATUS.size:
        return {"failed": bytes(status).decode(errors="replace").lstrip("!")}, []
    if ended == "exited" and len(status) == inside.STATUS.size:
        code, cpu, wall, memory = inside.STATUS.unpack(status)
        answer |= {"ended": "killed" if code < 0 else ended, "code": code, "cpu": cpu, "wall": wall, "memory": memory}
    elif ended == "exited":  # the first process was killed: by a kernel short of memory, or through the program
        answer |= {"ended": "killed", "code": -signal.SIGKILL}
    return answer, [bytes(text) for text in run.texts[:3]]


class _Run:
    """One run, as the zygote watches it."""

    def __init__(self, first: int, reading: list[int], owner: int, connection: socket.socket) -> None:
        self._first, self._reading, self._owner, self._connection = first, reading, owner, connection
        self.texts = [bytearray() for _ in reading]
        self.cpu_seconds = self.wall_seconds = 0.0

    def watch(self, wall_seconds: float, output_bytes: int) -> str:
        """Read what is written until everything has ended; return why it did."""
        began = time.monotonic()
        process = os.pidfd_open(self._first)
        poll = select.poll()
        for descriptor in (*self._reading, process, self._owner):
            poll.register(descriptor, select.POLLIN)
        poll.register(self._connection, select.POLLRDHUP)
        ended, alive = "exited", True
        while alive:
            left = began + wall_seconds - time.monotonic()
            ready = [descriptor for descriptor, _ in poll.poll(max(0.0, left * 1000) if ended == "exited" else None)]
            if self._owner in ready or self._connection.fileno() in ready:
                os._exit(1)  # nobody wants to know any more; the kernel ends the rest
            for number, descriptor in enumerate(self._reading):
                if descriptor in ready and not self._read(number, output_bytes):
                    poll.unregister(descriptor)
            alive = process not in ready
            why = self._over(left, output_bytes)
            if alive and why and ended == "exited":
                ended = why
                os.kill(self._first, signal.SIGKILL)
                for descriptor in self._reading:  # or it might go on for as long as we take what it writes
                    with contextlib.suppress(KeyError):
                        poll.unregister(descriptor)
        self.wall_seconds = time.monotonic() - began
        usage = os.wait4(self._first, 0)[2]
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        for number in range(len(self._reading)):
            while self._read(number, output_bytes):
                pass
        return "output" if ended == "exited" and self._over(1, output_bytes) else ended

    def _read(self, number: int, output_bytes: int) -> bool:
        """Take what a pipe has, at most as much as will be kept and one byte; return whether there may be more."""
        text = self.texts[number]
        chunk = os.read(self._reading[number], 1 << 16)
        text += chunk[: max(0, output_bytes + 1 - len(text))]
        return bool(chunk)

    def _over(self, left: float, output_bytes: int) -> str:
        if any(len(text) > output_bytes for text in self.texts[:3]):
            return "output"
        return "wall_clock" if left <= 0 else ""


class _part:
    """Within: an error of the kernel is the machine's refusal of a part of the sandbox."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise _Impossible(f"{self._name}: {error.strerror}") from None
