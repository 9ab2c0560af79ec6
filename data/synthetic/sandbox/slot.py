"""One place for a program to run in, as its owner sees it: a zygote at the other end of a socket."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import isthmus
from isthmus.data.synthetic.sandbox import frames
from isthmus.data.synthetic.sandbox.inside import USER
from isthmus.data.synthetic.sandbox.job import Ended, Job, Outcome
from isthmus.data.synthetic.sandbox.languages import Interpreter, find
from isthmus.errors import UserError

_NOBODY = 65534
_START_SECONDS = 30.0
_GRACE_SECONDS = 20.0  # a zygote keeps the time itself; this is for one that does not answer
_BOOT = "import sys; sys.path.append(sys.argv[2]); from isthmus.data.synthetic.sandbox import zygote; "
_BOOT += "zygote.main(int(sys.argv[1]), sys.argv[2])"


class SandboxFailed(Exception):
    """The sandbox, not the program, failed: its processes were killed, or the machine ran out of something."""


class Slot:
    """Runs one program at a time.

    Raises:
        UserError: this machine does not permit a part of the sandbox.
    """

    def __init__(self, interpreters: Sequence[Interpreter]) -> None:
        ours, theirs = socket.socketpair()
        package = str(Path(isthmus.__file__).parents[1])
        python = find("python").command
        with theirs:
            self._process = subprocess.Popen(
                # Without site-packages, with UTF-8 and with a fixed order of sets, so that runs are repeatable.
                [python, "-s", "-S", "-P", "-X", "utf8", "-c", _BOOT, str(theirs.fileno()), package],
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._connection = ours
        try:
            self.landlock = self._start(interpreters)
        except BaseException:
            self.close()
            raise

    def run(self, job: Job) -> Outcome:
        """Run a program to its end.

        Raises:
            SandboxFailed: no outcome is known; this slot is of no more use.
        """
        limits = job.limits
        header = {
            "language": job.language,
            "main": job.main,
            "arguments": list(job.arguments),
            "options": list(job.options),
            "files": list(job.files),
            "limits": asdict(limits),
        }
        try:
            self._connection.settimeout(limits.wall_seconds + _GRACE_SECONDS)
            frames.send(self._connection, header, [job.stdin, *job.files.values()])
            answer, texts = self._receive()
        except (frames.Closed, TimeoutError) as error:
            raise SandboxFailed(f"the sandbox gives no answer: {error}") from None
        if "failed" in answer:
            raise SandboxFailed(answer["failed"])
        output, errors, result = (text[: limits.output_bytes] for text in texts)
        return Outcome(
            ended=Ended(answer["ended"]),
            code=answer["code"],
            stdout=output,
            stderr=errors,
            result=result,
            cpu_seconds=answer["cpu"],
            wall_seconds=answer["wall"],
            memory_bytes=answer["memory"],
        )

    @property
    def process(self) -> int:
        """The launcher's process number."""
        return self._process.pid

    def close(self) -> None:
        """End the zygote and all that runs under it; they are gone when this returns."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _start(self, interpreters: Sequence[Interpreter]) -> int:
        config = {
            "reads": sorted({path for interpreter in interpreters for path in interpreter.reads}),
            "interpreters": {
                interpreter.language.name: {
                    "name": interpreter.language.name,
                    "command": interpreter.command,
                    "starts": list(interpreter.starts),
                    "reserved_bytes": interpreter.language.reserved_bytes,
                }
                for interpreter in interpreters
            },
        }
        try:
            self._connection.settimeout(_START_SECONDS)
            frames.send(self._connection, config)
            self._receive()
            frames.send(self._connection, _map_users(self._process.pid))
            answer, _ = self._receive()
        except (frames.Closed, TimeoutError) as error:
            raise _impossible(f"its process ended before it had begun ({error})") from None
        return int(answer["landlock"])

    def _receive(self) -> tuple[dict[str, Any], list[bytes]]:
        header, parts = frames.receive(self._connection)
        if "impossible" in header:
            raise _impossible(header["impossible"])
        if "bug" in header:
            raise RuntimeError(f"in the sandbox:\n{header['bug']}")
        return header, parts


def _impossible(why: str) -> UserError:
    return UserError(
        f"untrusted programs cannot be confined on this machine ({why})",
        where="sandbox",
        fix="permit unprivileged user namespaces and mounts in them, with Landlock and seccomp (Linux 5.14 or newer)",
    )


def _map_users(process: int) -> dict[str, Any]:
    """Say which users a new user namespace has.

    Root gives two, itself to set the stage and nobody for programs, since the kernel counts no processes of root's.
    Others can give themselves only.
    """
    mine, group = os.geteuid(), os.getegid()
    folder = Path(f"/proc/{process}")
    if mine == 0:
        with contextlib.suppress(OSError):
            (folder / "uid_map").write_text(f"0 0 1\n{USER} {_NOBODY} 1\n")
            (folder / "gid_map").write_text(f"0 {group} 1\n{USER} {_NOBODY} 1\n")
            return {"two": True}
    try:
        (folder / "setgroups").write_text("deny")
        (folder / "uid_map").write_text(f"{USER} {mine} 1\n")
        (folder / "gid_map").write_text(f"{USER} {group} 1\n")
    except OSError as error:
        return {"impossible": error.strerror}
    return {"two": False}
