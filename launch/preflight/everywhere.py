"""A preflight of several sites or nodes, started in all of them from here: by ssh, by srun, or on this machine."""

import base64
import dataclasses
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from isthmus.config import to_yaml
from isthmus.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNFIT, UserError
from isthmus.launch.preflight.config import PreflightRunConfig
from isthmus.launch.scripts import preamble, step_options
from isthmus.launch.shell import NO_CONNECTION, Shell
from isthmus.launch.sites import LaunchSite
from isthmus.launch.sites_file import LaunchKind
from isthmus.launch.start import shells_of, unreachable

_VERDICTS = (EXIT_OK, EXIT_UNFIT)
_OF_THE_END = ("isthmus: ", "srun: error: ", "ssh: ")  # told in one line, with what failed
_END_SECONDS = 20.0  # for what was told to stop

_OUTER = """\
cd -- {directory} || exit 2
{preamble}
exec {command}"""
_INNER = """\
work="$(mktemp -d)"
trap 'kill "$node" 2>/dev/null; wait "$node"; rm -rf -- "$work"' EXIT
trap 'exit 130' TERM INT
base64 -d >"$work/config.yaml" <<<{config}
{python} -m isthmus.launch.preflight.node --config="$work/config.yaml" {options} &
node=$!
code=0
wait "$node" || code=$?
exit "$code"
"""


@dataclass
class _Part:
    """What was started at one place: a node, or a job of all nodes of a site."""

    site: LaunchSite
    shell: Shell
    process: "subprocess.Popen[bytes]"
    shown: bool  # what it prints is shown as it comes
    complaints: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.process.poll() not in (None, *_VERDICTS)


def preflight_everywhere(config: PreflightRunConfig, sites: Sequence[LaunchSite], *, as_json: bool) -> int:
    """Start the preflight in all sites, show what the first one tells, and return the verdict as an exit code.

    Raises:
        UserError: a place cannot be reached, or cannot start its part; what had started is stopped.
    """
    parts: list[_Part] = []
    readers: list[threading.Thread] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for site in sites:
            for shell, script in _scripts(config, site, as_json=as_json):
                parts.append(_Part(site, shell, _opened(site, shell, script), shown=site is sites[0]))
                readers += _reading(parts[-1])
        while any(part.process.poll() is None for part in parts) and not any(part.failed for part in parts):
            time.sleep(0.05)
        causes = [part for part in parts if part.failed]  # the others would wait for it, and are ended
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        _end(parts)
        for thread in readers:
            thread.join(timeout=2)
    if causes:
        raise _cannot(causes[0])
    for part in parts:
        for line in part.complaints:
            if line.startswith("isthmus: "):
                print(line, file=sys.stderr)
    return max(part.process.returncode for part in parts)


def _opened(site: LaunchSite, shell: Shell, script: str) -> "subprocess.Popen[bytes]":
    try:
        return shell.open(script, errors=True)
    except FileNotFoundError:
        raise UserError("there is no ssh here", where=f"sites.at.{site.name}") from None


def _reading(part: _Part) -> list[threading.Thread]:
    streams = ((part.process.stdout, _read), (part.process.stderr, _complain))
    threads = [threading.Thread(target=reader, args=(part, stream), daemon=True) for stream, reader in streams]
    for thread in threads:
        thread.start()
    return threads


def _cannot(part: _Part) -> UserError:
    said = [line for line in part.complaints if line.strip()] or [f"exit code {part.process.returncode}"]
    if part.shell.host and part.process.returncode == NO_CONNECTION:
        return unreachable(part.site, part.shell, said[-1])
    words = next((line for line in reversed(said) if line.startswith("isthmus: ")), said[-1])
    words = words.removeprefix("isthmus: ").removeprefix("srun: error: ")
    return UserError(f"{part.shell.name}: {words}", where=f"sites.at.{part.site.name}")


def _scripts(config: PreflightRunConfig, site: LaunchSite, *, as_json: bool) -> list[tuple[Shell, str]]:
    """Return where to run what, so that all nodes of a site take part."""
    own = config
    if config.sites.at:
        own = dataclasses.replace(config, sites=dataclasses.replace(config.sites, name=site.name))
    packed = base64.b64encode(to_yaml(own).encode()).decode()
    shells, launch_id = shells_of(site, config.launch), secrets.token_hex(4)

    def script(place: Sequence[str], *before: str) -> str:
        words = [f"--launch-id={launch_id}", *place, *(["--json"] if as_json else [])]
        inner = _INNER.format(config=packed, python=shlex.quote(site.python), options=" ".join(words))
        command = shlex.join([*before, "bash", "-c", inner])
        return _OUTER.format(directory=shlex.quote(site.directory), preamble=preamble(site), command=command)

    if config.launch.kind is LaunchKind.slurm:
        return [(shells[0], script([], "srun", *step_options(site, config.launch.exclude)))]
    nodes = site.spec.nodes
    return [(shell, script([f"--nodes={nodes}", f"--node={node}"])) for node, shell in enumerate(shells[:nodes])]


def _read(part: _Part, stream: "IO[bytes]") -> None:
    for raw in stream:
        line = raw.decode(errors="replace").rstrip("\n")
        if part.shown:
            print(line, flush=True)


def _complain(part: _Part, stream: "IO[bytes]") -> None:
    for raw in stream:
        line = raw.decode(errors="replace").rstrip("\n")
        part.complaints.append(line)
        if part.shown and not line.startswith(_OF_THE_END):
            print(line, file=sys.stderr, flush=True)


def _end(parts: Sequence[_Part]) -> None:
    """Stop what still runs: its standard input ends."""
    for part in parts:
        if part.process.stdin is not None:
            with suppress(OSError):
                part.process.stdin.close()
    deadline = time.monotonic() + _END_SECONDS
    for part in parts:
        try:
            part.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.process.kill()
            part.process.wait()
