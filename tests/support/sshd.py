"""An sshd of its own on loopback, with a key that opens it."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.ranks import free_port

_CONFIGURATION = """\
Port {port}
ListenAddress 0.0.0.0
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PidFile none
"""


@dataclass(frozen=True)
class Sshd:
    """How to reach it: options of ssh, with the key and without; and how to start it."""

    folder: Path
    port: int
    program: str

    @property
    def command(self) -> list[str]:
        return [self.program, "-D", "-e", "-f", str(self.folder / "config")]

    @property
    def options(self) -> list[str]:
        return [*self.without_key, "-i", str(self.folder / "user_key")]

    @property
    def without_key(self) -> list[str]:
        known = ["-o", f"UserKnownHostsFile={self.folder}/known_hosts", "-o", "StrictHostKeyChecking=accept-new"]
        return ["-F", "none", "-p", str(self.port), *known, "-o", "IdentitiesOnly=yes"]


def prepare_sshd(folder: Path) -> Sshd:
    """Write keys and configuration.

    Raises:
        FileNotFoundError: there is no sshd here.
    """
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
    if program is None or shutil.which("ssh") is None:
        raise FileNotFoundError("no sshd here (Debian: openssh-server)")
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    sshd = Sshd(folder, free_port(), program)
    (folder / "config").write_text(_CONFIGURATION.format(port=sshd.port, folder=folder))
    with suppress(PermissionError):
        Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its privileges, if it has them
    return sshd


@contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """Yield a running sshd; skips the test where there is none."""
    try:
        sshd = prepare_sshd(folder)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    log = (folder / "log").open("wb")
    daemon = subprocess.Popen(sshd.command, stdin=subprocess.DEVNULL, stderr=log)
    log.close()
    try:
        deadline = time.monotonic() + 30
        while "listening" not in (folder / "log").read_text():
            if daemon.poll() is not None:
                pytest.skip(f"sshd does not run here: {(folder / 'log').read_text().strip()}")
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield sshd
    finally:
        daemon.terminate()
        daemon.wait()
