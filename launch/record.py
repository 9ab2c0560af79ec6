"""What was launched where, as `launch/launch.json` of the run folder keeps it for status, stop and logs."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isthmus.errors import UserError
from isthmus.files import write_json
from isthmus.launch.shell import Shell

_FILE = "launch/launch.json"


@dataclass
class SiteRecord:
    """One site.

    Attributes:
        kind: local, torchrun or slurm.
        folder: the site's run folder, on its machines.
        prelude: shell lines that make `python` work there.
        hosts: machines of its nodes, as ssh names them; empty names are this one. Slurm: the login node.
        processes: of the nodes' supervisors, in the order of hosts.
        job: Slurm's id.
        started: False where what to run was only printed.
    """

    name: str
    kind: str
    folder: str
    prelude: str = ""
    python: str = ""
    hosts: list[str] = field(default_factory=lambda: [""])
    ssh_options: list[str] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    job: str | None = None
    started: bool = True

    def shells(self) -> list[Shell]:
        return [Shell(host, tuple(self.ssh_options)) for host in self.hosts]


@dataclass
class LaunchRecord:
    run: str
    launch_id: str
    started_at: float
    sites: list[SiteRecord]

    def write(self, run_folder: Path) -> None:
        write_json(run_folder / _FILE, asdict(self))


def read_record(run_folder: Path) -> LaunchRecord:
    """Return the record of a run, or, where a run was not launched with one, what its folder shows.

    Raises:
        UserError: it is no run folder.
    """
    path = run_folder / _FILE
    try:
        written: dict[str, Any] = json.loads(path.read_text())
        return LaunchRecord(**{**written, "sites": [SiteRecord(**site) for site in written["sites"]]})
    except FileNotFoundError:
        folders = sorted(found.parent for found in run_folder.glob("*/config.yaml") if found.parent.name != "launch")
        if not folders:
            fix = "give a run folder, runs/NAME"
            raise UserError("holds no run", where=str(run_folder), fix=fix) from None
        sites = [SiteRecord(folder.name, "local", str(folder.absolute())) for folder in folders]
        return LaunchRecord(run_folder.name, "", path.parent.parent.stat().st_mtime, sites)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError("cannot be read", where=str(path), fix="launch again to write it anew") from None


def chosen_sites(record: LaunchRecord, names: list[str]) -> list[SiteRecord]:
    """Return the sites of these names, or all.

    Raises:
        UserError: a site that the run does not have.
    """
    known = {site.name: site for site in record.sites}
    for name in names:
        if name not in known:
            raise UserError(f"there is no site '{name}'", where=record.run, fix=f"choose from {', '.join(known)}")
    return [known[name] for name in names] if names else record.sites
