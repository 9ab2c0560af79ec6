"""The processes of a lab's sites: started together, watched, and ended whatever happens."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from isthmus.config import to_yaml
from isthmus.errors import EXIT_BUG, EXIT_OK, EXIT_SITE_LOST
from isthmus.files import write_atomically
from isthmus.launch.lab.network import SiteNetwork
from isthmus.launch.lab.watch import SiteLog
from isthmus.parallelism.sites.config import SyncKind
from isthmus.train.config import Config
from isthmus.train.validate import Plan, prepare_folder

_STORE_PORT = 29400
_POLL_SECONDS = 0.25
_PATIENCE_SECONDS = 30.0  # for sites to end by themselves after a request to stop


@dataclass
class Site:
    """One site: its configuration, its process, what it prints and what it measures."""

    name: str
    folder: Path
    config: Config
    log: SiteLog
    console: IO[Any]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def exit_code(self) -> int:
        """The process's, or 128 + the number of the signal that killed it, as a shell has it."""
        code = self.process.returncode if self.process is not None else EXIT_BUG
        return code if code >= 0 else 128 - code

    @property
    def last_words(self) -> str:
        lines = Path(self.console.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return next((line for line in reversed(lines) if line.startswith("isthmus: ")), lines[-1] if lines else "")


def site_config(config: Config, names: Sequence[str], site: int, addresses: Sequence[str], store_port: int) -> Config:
    """Return what one site of the lab is told."""
    alone = len(names) == 1 and config.sync.kind is SyncKind.none
    sites = dataclasses.replace(
        config.sites,
        name=names[site],
        names=list(names),
        store=None if alone else f"{addresses[0]}:{store_port}",
        host=names[0],
    )
    lane = dataclasses.replace(config.lane, interface=addresses[site])
    # A lab shows what happens when a site fails; it does not start one again behind the user's back.
    restart = dataclasses.replace(config.restart, without_progress=0)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    return Config(**{**fields, "sites": sites, "lane": lane, "restart": restart})


def free_store_port(address: str) -> int:
    """Return a port for the store: always the same in a namespace, any free one on loopback."""
    if not address.startswith("127."):
        return _STORE_PORT
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def run_sites(
    configs: Sequence[Config],
    plans: Sequence[Plan],
    ranks: int,
    network: SiteNetwork,
    *,
    show: Callable[[list[Site]], None],
    tell: Callable[[str], None],
    stop_requested: Callable[[], int],
) -> list[Site]:
    """Train in all sites until every one has ended; return them with their last figures.

    Args:
        show: called a few times a second.
        tell: says one line to the user.
        stop_requested: how often somebody has asked to stop; once passes the request on, twice kills.
    """
    sites: list[Site] = []
    try:
        for config, plan in zip(configs, plans, strict=True):
            prepare_folder(plan.folder)
            (plan.folder / "logs").mkdir(exist_ok=True)
            console = (plan.folder / "logs" / "console.log").open("wb")
            sites.append(Site(str(config.sites.name), plan.folder, config, SiteLog(plan.folder), console))
        for number, site in enumerate(sites):
            resolved = site.folder / "config.yaml"
            write_atomically(resolved, to_yaml(site.config).encode())
            verb = ["train"] if ranks == 1 else ["launch", f"launch.processes={ranks}"]
            command = [sys.executable, "-m", "isthmus.launch.cli", *verb, "--config", str(resolved)]
            site.process = network.start(number, command, output=site.console)
        _watch(sites, show, tell, stop_requested)
    finally:
        for site in sites:
            if site.process is not None and site.process.poll() is None:
                site.process.kill()
                site.process.wait()
            site.console.close()
            site.log.read()
    return sites


def worst_exit_code(sites: Sequence[Site]) -> int:
    """Return the code of the site that failed; that another was lost is only a consequence."""
    codes = [site.exit_code for site in sites]
    failed = [code for code in codes if code != EXIT_OK]
    causes = [code for code in failed if code != EXIT_SITE_LOST]
    return (causes or failed or [EXIT_OK])[0]


def _watch(
    sites: list[Site],
    show: Callable[[list[Site]], None],
    tell: Callable[[str], None],
    stop_requested: Callable[[], int],
) -> None:
    passed_on, ended_by = 0, float("inf")
    # Over a thin link a step may take as long as a lane waits, and a save comes after it.
    patience = max(site.config.lane.deadline_seconds for site in sites) + _PATIENCE_SECONDS
    while running := [site for site in sites if site.process is not None and site.process.poll() is None]:
        show(sites)
        requests = stop_requested()
        if requests > passed_on or time.monotonic() > ended_by:
            kill = requests > 1 or time.monotonic() > ended_by
            for site in running:
                _signal(site, signal.SIGKILL if kill else signal.SIGINT)
            if not kill:
                tell("asked all sites to stop after their step and save; once more kills them")
            passed_on, ended_by = requests, time.monotonic() + (_PATIENCE_SECONDS if kill else patience)
        if len(running) < len(sites) and ended_by == float("inf"):
            # The others end by themselves once their lanes' deadline has passed.
            ended_by = time.monotonic() + patience
        time.sleep(_POLL_SECONDS)


def _signal(site: Site, number: int) -> None:
    assert site.process is not None
    with suppress(ProcessLookupError):
        os.kill(site.process.pid, number)
