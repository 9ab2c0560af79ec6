"""`isthmus launch`: one job description, checked once, started on this machine, over ssh or through Slurm."""

import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from isthmus.config import compose, keys_of, load_resolved, to_yaml
from isthmus.errors import EXIT_OK, UserError
from isthmus.files import write_atomically, write_json
from isthmus.launch.local import run_here, run_sites_here
from isthmus.launch.record import LaunchRecord, SiteRecord, read_record
from isthmus.launch.scripts import agent_script, job_script, torchrun_command
from isthmus.launch.sites import LaunchSite, launch_sites, plan_site
from isthmus.launch.sites_file import LaunchKind, LaunchRunConfig, SiteSpec
from isthmus.launch.snapshot import snapshot
from isthmus.launch.start import check, record_of, shells_of, start_agents, submit, try_submission, undo, wait_started
from isthmus.launch.states import active, states
from isthmus.launch.verbs import run_verb
from isthmus.train.command import Command, parse, print_help
from isthmus.train.config import Config, run_name, site_name
from isthmus.train.validate import Plan, load_corpus, prepare_folder

_USAGE = """\
isthmus launch [OPTION] [GROUP=CHOICE] [KEY=VALUE] ...   train: every site, every rank
isthmus launch preflight [GROUP=CHOICE] [KEY=VALUE] ...  look for what would stop or slow the run
isthmus launch status RUN [SITE ...]                     how each site stands
isthmus launch stop RUN [SITE ...]                       save, then end
isthmus launch logs RUN [SITE] [RANK]                    what ranks have logged, merged by time

    isthmus launch launch.processes=4 model=nano train.steps=20
    isthmus launch launch=slurm sites=prod.yaml experiment=my/run.yaml sync=local launch.dry_run=true

Options:
  --config FILE    take a resolved configuration (RUN/SITE/config.yaml); then only launch.* may be given
  --print-config   print the composed configuration and end
  --json           print one JSON object on standard output at the end, everything else on standard error
  --help           print this

Groups (a choice may be a YAML file of yours, as in sites=prod.yaml):
"""
_VERBS = {
    "status": "launch.status",
    "stop": "launch.stop",
    "logs": "launch.logs",
    "preflight": "launch.preflight.command",
}


def main(argv: Sequence[str]) -> int:
    """Run a sub-verb, or compose, validate and start; return the exit code (of the run, where it runs here)."""
    words = list(argv)
    try:
        if words and words[0] in _VERBS:
            return run_verb(_VERBS[words[0]], words[1:])
        if words and "=" not in words[0] and not words[0].startswith("-"):
            known = ", ".join(_VERBS)
            raise UserError(
                f"there is no '{words[0]}'", where="isthmus launch", fix=f"use KEY=VALUE, or one of: {known}"
            )
        return _launch(words)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code


def _launch(argv: Sequence[str]) -> int:
    command = parse(argv)
    if command.help:
        print_help(_USAGE, LaunchRunConfig, "launch")
        for name, default, meaning in keys_of(SiteSpec):
            print(f"  sites.at.NAME.{name} ({default}): {meaning}")
        return EXIT_OK
    whole, sites = _composed(command)
    if command.print_config:
        print(to_yaml(sites[0].config if command.config else whole), end="")
        return EXIT_OK
    if command.json and (whole.sites.at or whole.launch.kind is not LaunchKind.local):
        fix = "`isthmus launch status RUN --json` says how it stands"
        raise UserError("is for one site on this machine", where="--json", fix=fix)
    options = ["--json"] if command.json else []
    plans = [_validated(whole, site) for site in sites]
    launch_id = secrets.token_hex(4)
    if whole.launch.dry_run:
        return _show(sites, whole, launch_id)
    if command.config:
        # Whoever resolved it keeps the record.
        return run_here(sites[0], plans[0].folder, options)
    run_folder = Path(whole.run.dir).expanduser() / run_name(sites[0].config)
    prepare_folder(run_folder)
    _refuse_active(run_folder, sites)
    ours = snapshot(argv)
    write_json(run_folder / "launch" / "environment.json", ours)
    write_atomically(run_folder / "launch" / "config.yaml", to_yaml(whole).encode())
    if whole.launch.kind is not LaunchKind.local:
        return _start(sites, whole, launch_id, run_folder, ours)
    records = [record_of(site, whole.launch, started=True) for site in sites]
    if not whole.sites.at:
        # Sites that are started one by one share the run folder.
        records += [entry for entry in _recorded(run_folder) if entry.name != sites[0].name]
    LaunchRecord(run_folder.name, launch_id, time.time(), records).write(run_folder)
    return run_sites_here(sites, launch_id) if whole.sites.at else run_here(sites[0], plans[0].folder, options)


def _validated(whole: LaunchRunConfig, site: LaunchSite) -> Plan:
    plan = plan_site(site, whole.launch)
    if not site.elsewhere and site.spec.dir is None:
        load_corpus(site.config, plan)
    return plan


def _composed(command: Command) -> tuple[LaunchRunConfig, list[LaunchSite]]:
    if not command.config:
        whole = compose(LaunchRunConfig, "launch", command.overrides)
        return whole, launch_sites(whole)
    others = [override for override in command.overrides if not override.startswith("launch.")]
    if others:
        raise UserError("takes no overrides", where="--config", fix="the file is complete: change it there")
    whole = compose(LaunchRunConfig, "launch", command.overrides)
    config = load_resolved(Config, command.config)
    return whole, [LaunchSite(site_name(config), SiteSpec(), config, launch_sites(whole)[0].ranks_per_node)]


def _recorded(run_folder: Path) -> list[SiteRecord]:
    return read_record(run_folder).sites if (run_folder / "launch" / "launch.json").exists() else []


def _refuse_active(run_folder: Path, sites: Sequence[LaunchSite]) -> None:
    names = {site.name for site in sites}
    for state in states([entry for entry in _recorded(run_folder) if entry.started and entry.name in names]):
        if "unreachable" not in state and active(state):
            fix = f"wait for it, or isthmus launch stop {run_folder}"
            raise UserError(f"{state['site']} is running", where=str(run_folder), fix=fix)


def _by_hand(whole: LaunchRunConfig, site: LaunchSite) -> bool:
    return site.elsewhere and not whole.launch.ssh


def _start(
    sites: Sequence[LaunchSite], whole: LaunchRunConfig, launch_id: str, run_folder: Path, ours: dict[str, object]
) -> int:
    launch, record = whole.launch, LaunchRecord(run_folder.name, launch_id, time.time(), [])
    mine = [site for site in sites if not _by_hand(whole, site)]
    check(mine, launch, ours)
    groups = [mine] if launch.array and mine else [[site] for site in mine]
    if launch.kind is LaunchKind.slurm:
        for group in groups:
            try_submission(group, launch, launch_id)
    record.sites = [record_of(site, launch, started=not _by_hand(whole, site)) for site in sites]
    by_name = {entry.name: entry for entry in record.sites}
    started: list[SiteRecord] = []
    try:
        for group in groups:
            records = [by_name[site.name] for site in group]
            started += records
            if launch.kind is LaunchKind.slurm:
                submit(group, launch, records, launch_id)
            else:
                start_agents(group[0], launch, records[0], launch_id)
        if launch.kind is LaunchKind.torchrun:
            wait_started(mine, launch, started, launch_id)
    except BaseException:
        undo(started)
        raise
    record.write(run_folder)
    for entry in started:
        where = f"job {entry.job}" if entry.job else ", ".join(host or "this machine" for host in entry.hosts)
        print(f"{entry.name}: started, {where}; {entry.folder}")
    for site in sites:
        if _by_hand(whole, site):
            _explain(site, whole, launch_id, run_folder)
    print(f"how it stands: isthmus launch status {run_folder}")
    return EXIT_OK


def _scripts(site: LaunchSite, whole: LaunchRunConfig, launch_id: str) -> dict[str, str]:
    """Return a site's scripts by file name."""
    if whole.launch.kind is LaunchKind.slurm:
        return {f"{site.name}.sbatch": job_script([site], launch_id=launch_id, exclude=whole.launch.exclude)}
    return {
        f"{site.name}-{node}.sh": agent_script(site, node=node, launch_id=launch_id, exclude=whole.launch.exclude)
        for node in range(len(shells_of(site, whole.launch)))
    }


def _explain(site: LaunchSite, whole: LaunchRunConfig, launch_id: str, run_folder: Path) -> None:
    """Write the scripts of a site that somebody starts there, and say how."""
    hosts = [shell.name for shell in shells_of(site, whole.launch)]
    for number, (name, script) in enumerate(_scripts(site, whole, launch_id).items()):
        path = run_folder / "launch" / name
        write_atomically(path, script.encode())
        slurm = whole.launch.kind is LaunchKind.slurm
        how = f"mkdir -p {site.files} && sbatch {name}" if slurm else f"bash {name}"
        print(f"{site.name}: copy {path} to {hosts[number]} and run there: {how}")
    print(f"{site.name}: or let launch.ssh=true do it")


def _show(sites: Sequence[LaunchSite], whole: LaunchRunConfig, launch_id: str) -> int:
    """Print what would run where."""
    launch = whole.launch
    if launch.kind is LaunchKind.slurm and launch.array:
        shell = shells_of(sites[0], launch)[0]
        print(f"# sbatch on {shell.name}, an array of {len(sites)} sites\n")
        print(job_script(sites, launch_id=launch_id, exclude=launch.exclude))
        return EXIT_OK
    for site in sites:
        shells = shells_of(site, launch)
        for number, script in enumerate(_scripts(site, whole, launch_id).values()):
            shell = shells[number]
            how = "sbatch" if launch.kind is LaunchKind.slurm else "bash"
            print(f"# {site.name}: {how} on {shell.name}\n\n{script}")
            if launch.kind is LaunchKind.torchrun:
                plain = torchrun_command(site, node=number, count=len(shells), first_host=shells[0].host)
                print(f"# under plain torchrun, which starts nothing again:\n# {plain}\n")
    return EXIT_OK
