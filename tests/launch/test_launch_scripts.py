"""The scripts of a launch: golden ones for the common shapes, each good bash, each with everything that it needs."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from isthmus.config import compose, load_resolved, to_yaml
from isthmus.launch.scripts import agent_script, job_script, torchrun_command
from isthmus.launch.sites import LaunchSite, launch_sites
from isthmus.launch.sites_file import LaunchRunConfig
from isthmus.train.config import Config

GOLDEN = Path(__file__).parents[1] / "golden"
_BODY = re.compile(r"<<'END_OF_CONFIGURATION'\n(.*?)\nEND_OF_CONFIGURATION\n", flags=re.DOTALL)
RUN = ["train.steps=100", "train.global_batch=64", "run.name=big", "sync=local"]
ONE = """
at:
  main:
    dir: /data/isthmus
    python: /opt/isthmus/bin/python
    nodes: 4
    spares: 1
    modules: [cuda/12.4, nccl]
    setup: [source .venv/bin/activate]
    env: {NCCL_IB_HCA: "mlx5_0,mlx5_1", NOTE: it's quoted}
    interface: ib0
    threads: 8
    affinity: cores
    slurm:
      partition: gpu
      account: research
      time: 2-00:00:00
      gpus_per_node: 8
      cpus_per_node: 64
      memory: "0"
      exclusive: true
      container_image: /images/isthmus+1.sqsh
      container_mounts: /data:/data
      options: ["--comment=two words"]
      srun_options: [--cpu-bind=none]
"""
TWO = """
store: 198.51.100.7:29400
token_file: /etc/isthmus/secret
at:
  oregon: &site
    ssh: me@oregon
    dir: /scratch/isthmus
    slurm: {partition: gpu, time: "600", requeue: false}
  iowa: {<<: *site, overrides: {data.cache_dir: /local/cache}}
"""
CLOUDS = """
store: 198.51.100.7:29400
at:
  east: {hosts: [ubuntu@203.0.113.4, ubuntu@203.0.113.5, ubuntu@203.0.113.6], nodes: 2, spares: 1, dir: "/mnt/my runs"}
  west: {hosts: [192.0.2.9], dir: /mnt/runs, meeting_port: 29600, lane_interface: 192.0.2.9}
"""


def sites_of(folder: Path, table: str, *words: str) -> list[LaunchSite]:
    path = folder / "sites.yaml"
    path.write_text(table)
    return launch_sites(compose(LaunchRunConfig, "launch", [*RUN, f"sites={path}", *words]))


def scripts(folder: Path) -> dict[str, str]:
    """The common shapes, by the name of their golden file."""
    one = sites_of(folder, ONE, "launch=slurm", "launch.processes=8", "sync=none")
    two = sites_of(folder, TWO, "launch=slurm", "launch.processes=8", "launch.array=true")
    east, west = sites_of(folder, CLOUDS, "launch=torchrun", "launch.processes=8")
    return {
        "launch-slurm.sbatch": job_script(one, launch_id="1a2b3c4d", exclude=["n7", "n9"]),
        "launch-slurm-array.sbatch": job_script(two, launch_id="1a2b3c4d"),
        "launch-torchrun-spare.sh": agent_script(east, node=2, launch_id="1a2b3c4d"),
        "launch-torchrun-one-node.sh": agent_script(west, node=0, launch_id="1a2b3c4d"),
    }


def test_golden_scripts(tmp_path: Path, regenerate_golden: bool) -> None:
    for name, script in scripts(tmp_path).items():
        # Every new key of train would change them otherwise.
        shown = _BODY.sub("<<'END_OF_CONFIGURATION'\n...\nEND_OF_CONFIGURATION\n", script)
        if regenerate_golden:
            (GOLDEN / name).write_text(shown)
        assert shown == (GOLDEN / name).read_text(), name


def test_every_script_is_good_bash(tmp_path: Path) -> None:
    for name, script in scripts(tmp_path).items():
        path = tmp_path / name
        path.write_text(script)
        subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("bash -n has passed; there is no shellcheck here for the rest")
    # SC1091: what `setup` names is on the site. SC2317: a function that only a trap calls looks unreachable.
    words = ["shellcheck", "--exclude=SC1091,SC2317", *(str(tmp_path / name) for name in scripts(tmp_path))]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_a_script_carries_its_site_whole_configuration(tmp_path: Path) -> None:
    array = scripts(tmp_path)["launch-slurm-array.sbatch"]
    bodies = _BODY.findall(array)
    found = []
    for body in bodies:
        (tmp_path / "config.yaml").write_text(body)
        found.append(load_resolved(Config, tmp_path / "config.yaml"))
    assert [(config.sites.name, config.sites.names) for config in found] == [
        ("oregon", ["oregon", "iowa"]),
        ("iowa", ["oregon", "iowa"]),
    ]
    assert (found[0].data.cache_dir, found[1].data.cache_dir) == ("~/.cache/isthmus", "/local/cache")
    assert found[0].sites.store == "198.51.100.7:29400"
    assert to_yaml(found[1]) == bodies[1] + "\n"


def test_sbatch_reads_the_options_as_they_were_meant(tmp_path: Path) -> None:
    # sbatch(1) splits the lines at blanks and takes quotes: so does a shell.
    script = scripts(tmp_path)["launch-slurm.sbatch"]
    options = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    read = subprocess.run(["bash", "-c", f"printf '%s\\n' {' '.join(options)}"], capture_output=True, text=True)
    assert "--comment=two words" in read.stdout.splitlines()
    assert "--nodes=5" in read.stdout.splitlines(), "four and a spare"
    assert "--exclude=n7,n9" in read.stdout.splitlines()
    assert script.index("#SBATCH --exclude") < script.index("set -euo"), "sbatch stops reading at the first command"


def test_plain_torchrun_gets_the_same_run(tmp_path: Path) -> None:
    east, west = sites_of(tmp_path, CLOUDS, "launch=torchrun", "launch.processes=8")
    words = shlex.split(torchrun_command(east, node=1, count=2, first_host="ubuntu@203.0.113.4"))
    assert {"--nnodes=2", "--node-rank=1", "--rdzv-endpoint=203.0.113.4:29500", "--nproc-per-node=8"} <= set(words)
    assert words[-4:] == ["-m", "isthmus.train", "--config", "/mnt/my runs/runs/big/east/launch/config.yaml"]
    assert "--standalone" in torchrun_command(west, node=0, count=1, first_host="192.0.2.9")


# What the script of a job calls, each with its words on a line of `calls`.
_PROGRAMS = {
    "srun": 'cd "$FILES"; echo "$ENDS" >exit; printf "$EXCLUDED" >excluded; echo "${STOPPED:-}" >stop; '
    '[[ -z ${HANGS:-} ]] || exec "$REAL" 600; exit 1',
    "squeue": 'echo "squeue $*" >>"$CALLS"; [[ -z ${SILENT:-} ]] || exit 1; echo RUNNING',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"',
    "sbatch": 'echo "sbatch $*" >>"$CALLS"; [[ -z ${SILENT:-} ]] || exit 1; echo 99',
    # No pauses, but one: for that long the script waits for an srun that does not end.
    "sleep": '[[ $1 != 45 || -n ${HANGS:-} ]] || exec "$REAL" 45',
}
_TASK = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "code", "last", "job"),
    [
        ({"ENDS": "0"}, 0, "squeue --noheader --jobs=7 --format=%T", ""),
        ({"ENDS": "85"}, 85, "scontrol requeue 7", ""),
        ({"ENDS": "85", "STOPPED": "1a2b3c4d"}, 85, "squeue ", ""),
        ({"ENDS": "85", "STOPPED": "earlier"}, 85, "scontrol requeue 7", ""),
        ({"ENDS": "85", "HANGS": "1"}, 85, "scontrol requeue 7", ""),
        ({"ENDS": "86"}, 86, "scontrol requeue 7", ""),
        ({"ENDS": "87"}, 87, "scontrol requeue 7", ""),
        ({"ENDS": "84"}, 84, "scontrol requeue 7", ""),
        ({"ENDS": "84", "EXCLUDED": "n2\n"}, 84, "sbatch --parsable --exclude=n2 --dependency=afterany:7 ", "99"),
        ({"ENDS": "84", "EXCLUDED": "n2\n" * 101}, 84, "squeue ", ""),
        ({"ENDS": "85", "SILENT": "1"}, 85, "scontrol requeue 7", ""),
        ({"ENDS": "84", "EXCLUDED": "n2\n", "SILENT": "1"}, 84, "sbatch ", ""),
        ({"ENDS": "85", **_TASK}, 85, "scontrol requeue 7_1", ""),
        (
            {"ENDS": "84", "EXCLUDED": "n2\n", **_TASK},
            84,
            "sbatch --parsable --exclude=n2 --array=1 --dependency=afterany:7_1 ",
            "99_1",
        ),
    ],
)
def test_how_a_job_follows_itself(environment: dict[str, str], code: int, last: str, job: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, body in _PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (site,) = sites_of(tmp_path, f"at:\n  main: {{dir: {tmp_path}}}\n", "launch=slurm", "sync=none")
    script, files = tmp_path / "job.sbatch", Path(site.files)
    script.write_text(job_script([site], launch_id="1a2b3c4d"))
    fixed = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}
    fixed |= {"FILES": str(files), "CALLS": str(tmp_path / "calls"), "EXCLUDED": ""}
    fixed["REAL"] = str(shutil.which("sleep"))
    result = subprocess.run(["bash", str(script)], env={**fixed, **environment}, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert (tmp_path / "calls").read_text().splitlines()[-1].startswith(last), result.stderr
    assert ((files / "job").read_text().strip() if (files / "job").exists() else "") == job
