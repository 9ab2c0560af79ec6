"""Starts the sites of a launch by ssh or through Slurm: all of them, or none."""

import json
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from isthmus.errors import UserError
from isthmus.launch.record import SiteRecord
from isthmus.launch.scripts import agent_script, job_script, preamble
from isthmus.launch.shell import Answer, Shell, Unreachable
from isthmus.launch.sites import LaunchSite
from isthmus.launch.sites_file import LaunchConfig, LaunchKind

# Sites with other versions of these would not compute the same.
_SAME = ("isthmus", "torch", "megatron-core")
_START_SECONDS = 900  # until an agent has loaded torch and checked the configuration
Result = TypeVar("Result")
Item = TypeVar("Item")


def shells_of(site: LaunchSite, launch: LaunchConfig) -> list[Shell]:
    """Return how to reach the machines that a site is started from."""
    options = tuple(site.spec.ssh_options)
    if launch.kind is LaunchKind.slurm:
        return [Shell(site.spec.ssh or "", options)]
    return [Shell(host, options) for host in site.hosts(launch.exclude)]


def check(sites: Sequence[LaunchSite], launch: LaunchConfig, ours: dict[str, Any]) -> None:
    """Prove that every machine is reached, has a folder that can be written, and isthmus as here.

    Raises:
        UserError: the first thing that is wrong; nothing was started.
    """
    machines = [(site, shell) for site in sites for shell in shells_of(site, launch)]
    answers = in_parallel(lambda machine: _probe(*machine), machines)
    known = {"this machine": ours}
    for (site, shell), theirs in zip(machines, answers, strict=True):
        _compare(known, site, shell, theirs)


def record_of(site: LaunchSite, launch: LaunchConfig, *, started: bool) -> SiteRecord:
    """Return what status, stop and logs need to know of a site."""
    return SiteRecord(
        name=site.name,
        kind=launch.kind.name,
        folder=site.folder,
        prelude=preamble(site),
        python=site.python,
        hosts=[shell.host for shell in shells_of(site, launch)],
        ssh_options=list(site.spec.ssh_options),
        started=started,
    )


def start_agents(site: LaunchSite, launch: LaunchConfig, record: SiteRecord, launch_id: str) -> None:
    """Start an agent on each node of a site.

    Raises:
        UserError: it could not be started; others may be running.
    """
    shells = shells_of(site, launch)
    for node, shell in enumerate(shells):
        script = agent_script(site, node=node, launch_id=launch_id, exclude=launch.exclude)
        file, console = (shlex.quote(f"{site.files}/node-{node}.{kind}") for kind in ("sh", "log"))
        # Only the process's number may hold on to ssh's streams.
        command = f"cat >{file} && {{ nohup setsid bash {file} >{console} 2>&1 </dev/null & echo $!; }}"
        answer = _answer(site, shell, command, given=script)
        record.processes.append(int(answer.out.split()[-1]))


def wait_started(
    sites: Sequence[LaunchSite], launch: LaunchConfig, records: Sequence[SiteRecord], launch_id: str
) -> None:
    """Wait until all agents of all sites are up.

    Raises:
        UserError: one refused, in its own words; the others may be running.
    """
    waits = [
        (site, launch_id, node, shell, process)
        for site, record in zip(sites, records, strict=True)
        for node, (shell, process) in enumerate(zip(shells_of(site, launch), record.processes, strict=True))
    ]
    in_parallel(lambda wait: _wait_started(*wait), waits)


def submit(sites: Sequence[LaunchSite], launch: LaunchConfig, records: Sequence[SiteRecord], launch_id: str) -> None:
    """Submit the job of one site, or of all sites of an array.

    Raises:
        UserError: in sbatch's words.
    """
    site = sites[0]
    (shell,) = shells_of(site, launch)
    _write_job(sites, launch, launch_id)
    answer = _answer(site, shell, f"sbatch --parsable {shlex.quote(f'{site.files}/submitted.sbatch')}", key="slurm")
    job = answer.out.strip().splitlines()[-1].partition(";")[0]
    for number, record in enumerate(records):
        record.job = f"{job}_{number}" if len(sites) > 1 else job


def try_submission(sites: Sequence[LaunchSite], launch: LaunchConfig, launch_id: str) -> None:
    """Ask Slurm whether it would take a job, without submitting it.

    Raises:
        UserError: it would not.
    """
    site = sites[0]
    (shell,) = shells_of(site, launch)
    _write_job(sites, launch, launch_id)
    _answer(site, shell, f"sbatch --test-only {shlex.quote(f'{site.files}/submitted.sbatch')}", key="slurm")


def undo(records: Sequence[SiteRecord]) -> None:
    """End what was started, at once: none of it has trained yet."""
    for record in records:
        with suppress(Unreachable):
            if record.job is not None:
                record.shells()[0].run(f"scancel {shlex.quote(record.job)}")
        for shell, process in zip(record.shells(), record.processes, strict=False):
            with suppress(Unreachable):
                # The agent's ranks die with it.
                shell.run(f"kill -KILL {process}")


def unreachable(site: LaunchSite, shell: Shell, why: object) -> UserError:
    fix = "`ssh HOST true` has to work without a question"
    return UserError(f"{shell.name} cannot be reached: {why}", where=_key(site), fix=fix)


def in_parallel(call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call for all items at once, and return or raise in their order."""
    with ThreadPoolExecutor(max_workers=max(1, min(64, len(items)))) as pool:
        return [future.result() for future in [pool.submit(call, item) for item in items]]


def _write_job(sites: Sequence[LaunchSite], launch: LaunchConfig, launch_id: str) -> None:
    site = sites[0]
    (shell,) = shells_of(site, launch)
    script = job_script(sites, launch_id=launch_id, exclude=launch.exclude)
    _answer(site, shell, f"cat >{shlex.quote(f'{site.files}/submitted.sbatch')}", given=script)


def _probe(site: LaunchSite, shell: Shell) -> dict[str, Any]:
    files = shlex.quote(site.files)
    lines = [
        f"cd -- {shlex.quote(site.directory)} || exit 4",
        f"mkdir -p -- {files} && [ -w {files} ] || exit 5",
        # What an earlier launch of the run was told, or has found out.
        f"rm -f -- {files}/stop {files}/excluded {files}/job",
        preamble(site),
        f"{shlex.quote(site.python)} -m isthmus.launch.snapshot",
    ]
    try:
        answer = shell.run("\n".join(lines))
    except Unreachable as error:
        raise unreachable(site, shell, error) from None
    where = f"sites.at.{site.name}"
    if answer.code in (4, 5):
        folder = site.directory if answer.code == 4 else site.files
        raise UserError(f"{shell.name}: {answer.last_words}", where=f"{where}.dir", fix=f"make {folder} writable")
    if answer.code:
        fix = "name an interpreter that has isthmus (python), or activate one (setup)"
        raise UserError(f"{shell.name}: {answer.last_words}", where=f"{where}.python", fix=fix)
    found: dict[str, Any] = json.loads(answer.out.splitlines()[-1])
    return found


def _compare(known: dict[str, dict[str, Any]], site: LaunchSite, shell: Shell, theirs: dict[str, Any]) -> None:
    for other, ours in known.items():
        for package in _SAME:
            here, there = (found["versions"].get(package, "none").partition("+")[0] for found in (ours, theirs))
            if here != there:
                raise UserError(
                    f"{package} {there} on {shell.name}, {here} on {other}",
                    where=f"sites.at.{site.name}",
                    fix="install the same versions in all sites",
                )
        commits = [found["revision"]["commit"][:12] for found in (ours, theirs) if found["revision"]]
        if len({*commits}) > 1:
            raise UserError(
                f"isthmus at {commits[1]} on {shell.name}, {commits[0]} on {other}",
                where=f"sites.at.{site.name}",
                fix="check out the same commit in all sites",
            )


def _wait_started(site: LaunchSite, launch_id: str, node: int, shell: Shell, process: int) -> None:
    state, console = (shlex.quote(f"{site.files}/node-{node}.{kind}") for kind in ("json", "log"))
    script = f"""
while [ $SECONDS -lt {_START_SECONDS} ]; do
    grep -qs {launch_id} {state} && exit 0
    if ! kill -0 {process} 2>/dev/null; then
        grep '^isthmus: ' {console} | tail -n 1 >&2 || tail -n 1 {console} >&2
        exit 3
    fi
    sleep 0.3
done
echo "it has not begun in {_START_SECONDS} s" >&2
exit 3"""
    try:
        answer = shell.run(script, timeout_seconds=_START_SECONDS + 60)
    except Unreachable as error:
        raise UserError(f"{shell.name} was lost: {error}", where=_key(site)) from None
    if answer.code:
        raise UserError(f"{shell.name}: {answer.last_words.removeprefix('isthmus: ')}", where=f"sites.at.{site.name}")


def _answer(site: LaunchSite, shell: Shell, command: str, *, given: str = "", key: str = "dir") -> Answer:
    try:
        answer = shell.run(command, given=given)
    except Unreachable as error:
        raise UserError(f"{shell.name} cannot be reached: {error}", where=_key(site)) from None
    if answer.code:
        # sbatch says first what is wrong, and then that there is no job.
        lines = answer.err.strip().splitlines() if key == "slurm" else []
        words = lines[0].removeprefix("sbatch: error: ") if lines else answer.last_words
        raise UserError(f"{shell.name}: {words}", where=f"sites.at.{site.name}.{key}")
    return answer


def _key(site: LaunchSite) -> str:
    return f"sites.at.{site.name}.{'hosts' if site.spec.hosts else 'ssh'}"
