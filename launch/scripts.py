"""The bash scripts of a launch, each complete in one file: copy it, run it, submit it.

A script carries the site's resolved configuration, so that nothing else has to be there but isthmus itself.
"""

import shlex
from collections.abc import Sequence

from isthmus.config import to_yaml
from isthmus.errors import EXIT_HANG, EXIT_NODE_LOST, EXIT_REQUEUE, EXIT_REWIND, EXIT_SITE_LOST
from isthmus.launch.sites import LaunchSite
from isthmus.launch.sites_file import Affinity, SiteSpec
from isthmus.train.config import run_name

_END = "END_OF_CONFIGURATION"
_HEADER = """\
#!/usr/bin/env bash
# {what}
# Written by `isthmus launch`.
"""


def agent_script(site: LaunchSite, *, node: int, launch_id: str, exclude: Sequence[str] = ()) -> str:
    """Return what starts one node of a site under launch=torchrun: in the foreground, until the run has ended."""
    count = len(site.hosts(exclude))
    what = f"isthmus: site {site.name} of {run_name(site.config)}, node {node} of {count}"
    words = [*_node_command(site), f"--nodes={count}", f"--node={node}", f"--launch-id={launch_id}"]
    return "\n".join(
        [
            _HEADER.format(what=what) + "set -euo pipefail",
            *_preparation(site),
            f"exec {_quoted(words)} --config={_quoted([f'{site.files}/config.yaml'])}",
            "",
        ]
    )


def torchrun_command(site: LaunchSite, *, node: int, count: int, first_host: str) -> str:
    """Return the same under plain torchrun, which starts nothing again and turns every exit code into 1."""
    ranks = f"--nproc-per-node={site.ranks_per_node}"
    if count == 1:
        where = ["--standalone"]
    else:
        endpoint = f"{first_host.rpartition('@')[2] or 'localhost'}:{site.spec.meeting_port or 29500}"
        where = [f"--nnodes={count}", f"--node-rank={node}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
        where.append(f"--rdzv-id={run_name(site.config)}")
    return _quoted(["torchrun", *where, ranks, "-m", "isthmus.train", "--config", f"{site.files}/config.yaml"])


def job_script(sites: Sequence[LaunchSite], *, launch_id: str, exclude: Sequence[str] = ()) -> str:
    """Return an sbatch script: the job of one site, or an array with a task for each site.

    srun starts one agent a node. What ends with a code that the policy table requeues, queues again by itself; signals
    before a limit and a preemption reach the ranks, which save first.
    """
    first = sites[0]
    name = run_name(first.config)
    what = f"isthmus: {', '.join(site.name for site in sites)} of {name}"
    lines = [_HEADER.format(what=what).rstrip("\n")]
    lines += [f"#SBATCH {option}" for option in _sbatch_options(sites, name, exclude)]
    lines += ["set -euo pipefail"]
    if len(sites) > 1:
        lines.append('case "$SLURM_ARRAY_TASK_ID" in')
        for number, site in enumerate(sites):
            lines += [f"{number})", *_preparation(site), f"files={shlex.quote(site.files)}", ";;"]
        lines += ['*) echo "isthmus: there is no site $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;', "esac"]
        # sbatch's option knows no names of sites.
        lines.append('exec >>"$files/job-${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID.log" 2>&1')
    else:
        lines += [*_preparation(first), f"files={shlex.quote(first.files)}"]
    lines += ['cp -- "$0" "$files/job.sbatch"', ""]
    return "\n".join(lines) + _job_end(first, launch_id, exclude)


def preamble(site: LaunchSite) -> str:
    """Return the shell lines that make the site's python work."""
    modules = [f"module load {_quoted(site.spec.modules)}"] if site.spec.modules else []
    return "\n".join([*modules, *site.spec.setup])


def step_options(site: LaunchSite, exclude: Sequence[str]) -> list[str]:
    """Return the options of an srun that is a job of its own: one task a node, on nodes as the site's jobs get them."""
    slurm = site.spec.slurm
    options = [f"--job-name=preflight-{site.name}", f"--nodes={site.spec.nodes}", "--ntasks-per-node=1"]
    options += ["--kill-on-bad-exit=1", *_resources(site, exclude), *slurm.options]
    return options + _container_options(site)


def _container_options(site: LaunchSite) -> list[str]:
    """Return srun's options of the container and those that the user has given."""
    slurm, options = site.spec.slurm, list[str]()
    if slurm.container_image is not None:
        options.append(f"--container-image={slurm.container_image}")
        if slurm.container_mounts is not None:
            options.append(f"--container-mounts={slurm.container_mounts}")
        options.append(f"--container-workdir={site.directory}")
    return options + slurm.srun_options


def _job_end(site: LaunchSite, launch_id: str, exclude: Sequence[str]) -> str:
    slurm = site.spec.slurm
    options = ["--nodes=$SLURM_JOB_NUM_NODES", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--export=ALL"]
    quoted = [f'"{option}"' if "$" in option else option for option in options]
    if slurm.cpus_per_node is not None:
        quoted.append(f"--cpus-per-task={slurm.cpus_per_node}")
    quoted += [_quoted([option]) for option in _container_options(site)]
    command = _quoted([*_node_command(site), f"--launch-id={launch_id}", f"--patience={slurm.signal_seconds / 2:g}"])
    return _JOB_END.format(
        srun=" \\\n    ".join(["srun", *quoted, command + ' --config="$files/config.yaml"']),
        requeue=int(slurm.requeue),
        max_requeues=slurm.max_requeues,
        again=" | 1:".join(str(code) for code in (EXIT_SITE_LOST, EXIT_REQUEUE, EXIT_HANG, EXIT_REWIND)),
        moves=EXIT_NODE_LOST,
        launch_id=shlex.quote(launch_id),
        excluded="".join(f"{shlex.quote(node)}," for node in exclude),
    )


# The shell runs a trap only between commands, so the step is in the background and waited for.
_JOB_END = """\
# Of a task of an array, SLURM_JOB_ID may be that of the whole array.
self="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}"
self="${{self:-$SLURM_JOB_ID}}"
step=
interrupted=0
forward() {{
    interrupted=1
    echo "isthmus: asked to stop, the ranks are told" >&2
    [[ -z $step ]] || kill -s USR2 "$step" 2>/dev/null || true
}}
trap forward USR2 TERM
rm -f -- "$files/exit"
{srun} &
step=$!
if [[ $interrupted == 1 ]]; then # before there was a step
    interrupted=0
    kill -s USR2 "$step" 2>/dev/null || true
fi
# A node whose slurmstepd has been killed keeps srun waiting for good, although the run has ended.
{{
    trap 'kill "$!" 2>/dev/null' EXIT
    trap exit TERM
    nap() {{
        sleep "$1" >/dev/null 2>&1 &
        wait "$!"
    }}
    until [[ -s "$files/exit" ]]; do nap 5; done
    nap 45
    echo "isthmus: the run has ended, but a node's step does not answer: no longer waiting for it" >&2
    kill -s KILL "$step"
}} &
patience=$!
while :; do
    code=0
    wait "$step" || code=$?
    [[ $interrupted == 1 ]] || break # a signal ends `wait`, not the step
    interrupted=0
done
kill "$patience" 2>/dev/null || true
# srun's code is the highest of all tasks. The first agent has written down the run's; if it could not, it was killed.
ended="$code"
if [[ -s "$files/exit" ]]; then
    code="$(<"$files/exit")"
    ended="$code"
elif [[ $code -gt 128 ]]; then
    ended=killed
fi
if [[ $ended == {moves} && ! -s "$files/excluded" ]]; then
    ended=killed # nothing says which node to leave out
fi
echo "isthmus: the run ended with $ended, the step with exit code $code" >&2

# Whoever has cancelled the job, or queued it again, has the last word: it is then no longer running.
again=0
requeue={requeue}
for pause in 5 15 0; do
    state="$(squeue --noheader --jobs="$self" --format=%T)" && break
    state=RUNNING # Slurm does not answer: nobody has said otherwise
    sleep "$pause"
done
if [[ $requeue == 1 && "$state" == RUNNING && "$(cat "$files/stop" 2>/dev/null)" != {launch_id} ]]; then
    again=1
fi
case "$again:$ended" in
1:{again} | 1:killed)
    if [[ ${{SLURM_RESTART_COUNT:-0}} -lt {max_requeues} ]]; then
        scontrol requeue "$self" || echo "isthmus: not queued again" >&2
        sleep 60 # Slurm ends this script when it has taken the job back
    fi
    ;;
1:{moves}) # a node failed: the same job without it
    without="{excluded}$(paste -sd, "$files/excluded")"
    if [[ $(wc -l <"$files/excluded") -gt {max_requeues} ]]; then
        echo "isthmus: not queued again: it has left too many nodes, $without" >&2
        exit "$code"
    fi
    for pause in 5 15 0; do
        id="$(sbatch --parsable --exclude="$without" ${{SLURM_ARRAY_TASK_ID:+"--array=$SLURM_ARRAY_TASK_ID"}} \\
            --dependency="afterany:$self" "$files/job.sbatch")" && break
        id=
        sleep "$pause"
    done
    if [[ -z $id ]]; then
        echo "isthmus: not queued again" >&2
        exit "$code"
    fi
    id="${{id%%;*}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}"
    echo "$id" >"$files/job"
    echo "isthmus: job $id follows without $without" >&2
    ;;
esac
exit "$code"
"""


def _sbatch_options(sites: Sequence[LaunchSite], name: str, exclude: Sequence[str]) -> list[str]:
    site, slurm, spec = sites[0], sites[0].spec.slurm, sites[0].spec
    array = len(sites) > 1
    output = f"{site.files}/job-%j.log" if not array else f"{_parent(site.folder)}/job-%A-%a.log"
    options = [
        f"--job-name={name}" if array else f"--job-name={name}-{site.name}",
        f"--chdir={site.directory}",
        f"--output={output}",
        "--open-mode=append",
        f"--nodes={spec.nodes + spec.spares}",
        "--ntasks-per-node=1",
        f"--signal=B:USR2@{slurm.signal_seconds}",
        "--requeue" if slurm.requeue else "--no-requeue",
    ]
    if array:
        options.append(f"--array=0-{len(sites) - 1}")
    options += _resources(site, exclude)
    # sbatch splits these lines at blanks, and takes quotes as a shell does.
    return [_quoted([option]) for option in (*options, *slurm.options)]


def _resources(site: LaunchSite, exclude: Sequence[str]) -> list[str]:
    """Return what a job asks for, as sbatch and srun both take it."""
    slurm, options = site.spec.slurm, list[str]()
    for option, value in (
        ("partition", slurm.partition),
        ("account", slurm.account),
        ("qos", slurm.qos),
        ("time", slurm.time),
        ("gpus-per-node", slurm.gpus_per_node),
        ("cpus-per-task", slurm.cpus_per_node),
        ("mem", slurm.memory),
        ("constraint", slurm.constraint),
        ("reservation", slurm.reservation),
        ("exclude", ",".join(exclude) or None),
    ):
        if value is not None:
            options.append(f"--{option}={value}")
    if slurm.exclusive:
        options.append("--exclusive")
    return options


def _preparation(site: LaunchSite) -> list[str]:
    """Return the lines up to the start of the agent: folder, configuration, modules, environment."""
    spec = site.spec
    files, config = shlex.quote(site.files), shlex.quote(f"{site.files}/config.yaml")
    lines = [
        f"cd -- {shlex.quote(site.directory)}",
        f"mkdir -p -- {files}",
        f'temporary="$(mktemp -- {files}/.config.XXXXXX)"',
        f"cat >\"$temporary\" <<'{_END}'",
        to_yaml(site.config).rstrip("\n"),
        _END,
        f'mv -- "$temporary" {config}',
    ]
    if spec.modules or spec.setup:
        # Modules and activation scripts use variables that nobody has set.
        lines += ["set +u", preamble(site), "set -u"]
    return [*lines, *(f"export {name}={shlex.quote(value)}" for name, value in environment_of(spec).items())]


def environment_of(spec: SiteSpec) -> dict[str, str]:
    """Return the variables that the ranks of a site get."""
    variables = dict(spec.env)
    if spec.interface is not None:
        variables |= {"NCCL_SOCKET_IFNAME": spec.interface, "GLOO_SOCKET_IFNAME": spec.interface}
    if spec.threads is not None:
        variables["OMP_NUM_THREADS"] = str(spec.threads)
    # Spinning threads make a CPU run ten times slower beside one busy process.
    variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return variables


def _node_command(site: LaunchSite) -> list[str]:
    spec = site.spec
    words = [site.python, "-m", "isthmus.launch.node", f"--ranks={site.ranks_per_node}", f"--taking-part={spec.nodes}"]
    if spec.affinity is not Affinity.none:
        words.append(f"--affinity={spec.affinity.name}")
    if spec.interface is not None:
        words.append(f"--interface={spec.interface}")
    if spec.meeting_port is not None:
        words.append(f"--meeting-port={spec.meeting_port}")
    return words


def _quoted(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def _parent(folder: str) -> str:
    return folder.rpartition("/")[0]
