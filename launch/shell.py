"""bash on a machine: this one, or one that ssh reaches."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NO_CONNECTION = 255  # ssh(1)
_OPTIONS = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15"]


# A shell behind ssh is not told that its caller has gone; that its standard input has ended, it is.
_LEASH = """\
exec 3<&0 </dev/null
(
{script}
) &
child=$!
{{ read -r _ <&3; kill -TERM "$child"; }} >/dev/null 2>&1 &
watch=$!
code=0
wait "$child" || code=$?
kill "$watch" 2>/dev/null
exit "$code"
"""


class Unreachable(Exception):
    """ssh has not got there; says why in one line."""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def last_words(self) -> str:
        """The last line that says something: on standard error, else on standard output."""
        lines = [line.strip() for text in (self.out, self.err) for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


@dataclass(frozen=True)
class Shell:
    """Runs scripts.

    Args:
        host: as ssh names it; empty: this machine.
        options: further ones of ssh.
    """

    host: str = ""
    options: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.host or "this machine"

    def run(self, script: str, *, given: str = "", timeout_seconds: float = 120.0) -> Answer:
        """Run a script to its end, `given` on its standard input.

        Raises:
            Unreachable: there is no ssh, or it does not get there.
        """
        try:
            result = subprocess.run(
                self.words(script), input=given.encode(), capture_output=True, timeout=timeout_seconds, check=False
            )
        except FileNotFoundError:
            raise Unreachable("there is no ssh here") from None
        except subprocess.TimeoutExpired:
            raise Unreachable(f"no answer in {timeout_seconds:.0f} s") from None
        answer = Answer(result.returncode, _text(result.stdout), _text(result.stderr))
        if self.host and answer.code == NO_CONNECTION:
            raise Unreachable(answer.last_words)
        return answer

    def open(self, script: str, *, errors: bool = False) -> "subprocess.Popen[bytes]":
        """Start a script whose output is read as it comes; it is ended when its standard input, a pipe, is closed.

        What runs then gets SIGTERM: a script ends in an `exec`, or has a trap that ends what it has started.

        Args:
            errors: its standard error is read as well.
        """
        return subprocess.Popen(
            self.words(_LEASH.format(script=script)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if errors else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches the caller, which closes the pipe
        )

    def words(self, script: str) -> list[str]:
        """Return the command line. A login shell, there: clusters set up Slurm and modules in its profile."""
        if not self.host:
            return ["bash", "-c", script]
        return ["ssh", *_OPTIONS, *self.options, "--", self.host, f"bash -lc {shlex.quote(script)}"]


def _text(output: Any) -> str:
    return bytes(output).decode(errors="replace")
