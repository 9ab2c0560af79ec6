"""Runs the attacks, in the sandbox and, where that is harmless, without one, and says what came of them."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from isthmus.data.synthetic.sandbox.job import Ended, Job, Limits, Outcome
from isthmus.data.synthetic.sandbox.languages import LANGUAGES, find
from isthmus.data.synthetic.sandbox.pool import Sandbox
from support.attacks import Attack

_SMALL = {
    "wall_seconds": 120.0,
    "cpu_seconds": 2,
    "memory_bytes": 128 << 20,
    "scratch_bytes": 8 << 20,
    "file_bytes": 2 << 20,
    "files": 100,
}
SECRET = "the secret of the house"


@dataclass
class World:
    """What attacks aim at, and whether it is unharmed."""

    folder: Path
    victim: subprocess.Popen[bytes]
    server: socket.socket
    local: socket.socket
    abstract: socket.socket
    name: str

    def aim(self, code: str) -> str:
        home = self.folder / "home"
        values = {
            "secret": home / "secret.txt",
            "home": home,
            "victim": self.victim.pid,
            "socket": self.folder / "socket",
            "abstract": self.name,
            "port": self.server.getsockname()[1],
        }
        for name, value in values.items():
            code = code.replace(f"{{{name}}}", str(value))
        return code

    def harm(self) -> list[str]:
        """Return what has happened that must not."""
        found = []
        home = self.folder / "home"
        if sorted(path.name for path in home.iterdir()) != ["secret.txt"]:
            found.append("a file was planted")
        if (home / "secret.txt").read_text() != SECRET or (home / "secret.txt").stat().st_nlink != 1:
            found.append("the secret was touched")
        if self.victim.poll() is not None:
            found.append("a process outside was killed")
        for listening in (self.server, self.local, self.abstract):
            with contextlib.suppress(BlockingIOError):
                listening.accept()
                found.append("a socket was reached")
        return found


@contextlib.contextmanager
def world() -> Iterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="isthmus-attacks-"))
    (folder / "home").mkdir()
    (folder / "home" / "secret.txt").write_text(SECRET)
    name = f"isthmus-{secrets.token_hex(8)}"
    server = socket.create_server(("127.0.0.1", 0))
    local, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    local.bind(str(folder / "socket"))
    abstract.bind(f"\0{name}")
    for listening in (local, abstract):
        listening.listen()
    for listening in (server, local, abstract):
        listening.setblocking(False)
    victim = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
    try:
        yield World(folder, victim, server, local, abstract, name)
    finally:
        victim.kill()
        victim.wait()
        for listening in (server, local, abstract):
            listening.close()
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Result:
    attack: Attack
    contained: bool
    how: str


def run_attacks(sandbox: Sandbox, around: World, attacks: Sequence[Attack]) -> list[Result]:
    """Run attacks side by side in the sandbox."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda attack: attempt(sandbox, around, attack), attacks))


def attempt(sandbox: Sandbox, around: World, attack: Attack) -> Result:
    main = f"main{LANGUAGES[attack.language].suffix}"
    files = {main: around.aim(attack.code).encode()}
    limits = Limits(**{**_SMALL, **attack.limits})
    outcome = sandbox.run(Job(language=attack.language, main=main, files=files, limits=limits))
    expected = outcome.ended.value in ("exited", *attack.ends)
    return Result(attack, b"ESCAPED" not in outcome.stdout and expected, _describe(outcome))


def attempt_bare(around: World, attack: Attack) -> bool:
    """Run an attack as an ordinary process; return whether it succeeds."""
    language = find(attack.language)
    scratch = Path(tempfile.mkdtemp(dir=around.folder))
    main = scratch / f"main{language.language.suffix}"
    main.write_text(around.aim(attack.code))
    command = [sys.executable if attack.language == "python" else language.command, str(main)]
    with (around.folder / "home" / "secret.txt").open() as inherited, contextlib.ExitStack() as stack:
        fd = inherited.fileno()
        stack.callback(shutil.rmtree, scratch)
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, stdin=subprocess.DEVNULL, pass_fds=[fd], timeout=60, check=False
        )
    (around.folder / "home" / "planted").unlink(missing_ok=True)
    return b"ESCAPED" in done.stdout


def descendants(process: int) -> list[int]:
    """Return the processes that come from a process, as this machine numbers them."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [process]
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return found


def _describe(outcome: Outcome) -> str:
    text = (outcome.stdout + outcome.stderr).decode(errors="replace").strip().splitlines()
    ended = outcome.ended.value if outcome.ended is not Ended.exited else f"exit {outcome.code}"
    return f"{ended}: {text[-1][:60]}" if text else ended
