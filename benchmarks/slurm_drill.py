"""Runs on a real Slurm that lose a job, a step, a node or their time: each must resume by itself with the exact losses.

python benchmarks/slurm_drill.py [--only NAME ...] [--folder FOLDER] [--json FILE]

Slurm's daemons (Debian: slurmctld slurmd slurm-client munge) run on this machine as root, three slurmd as three nodes.
Beside a busy machine a drill takes some minutes; with --folder the reference is kept for the next one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.slurm import Slurm, running_slurm

RUN = [
    "model=nano",
    "train.steps=150",
    "train.global_batch=4",
    "train.sequence_length=32",
    "checkpoint.every_steps=10",
    "log.tensorboard=false",
    "run.name=r",
]
SITES = ["sync=exact", "sites.wait_seconds=1800"]
_TIMEOUT_SECONDS = 900
_OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


class Drill:
    """One run on Slurm.

    Args:
        folder: for this drill.
        sites: of the run.
        slurm_keys: of each site's job.
    """

    def __init__(self, slurm: Slurm, folder: Path, *, sites: int = 1, nodes: int = 2, **slurm_keys: Any) -> None:
        self.slurm, self.folder = slurm, folder
        folder.mkdir(parents=True)
        self.names = ["one", "two"][:sites]
        spec = {"nodes": nodes, "threads": 1, "slurm": {"cpus_per_node": 1, **slurm_keys}}
        table: dict[str, Any] = {"at": dict.fromkeys(self.names, spec)}
        if sites > 1:
            table["store"] = f"127.0.0.1:{29400 + os.getpid() % 500}"
        (folder / "sites.yaml").write_text(json.dumps(table))  # JSON is YAML
        words = ["launch=slurm", "sites=sites.yaml", *RUN, *(SITES if sites > 1 else [])]
        _isthmus(["launch", *words], folder, slurm.environment)
        record = json.loads((folder / "runs/r/launch/launch.json").read_text())
        self.jobs = [site["job"] for site in record["sites"]]

    def rows(self, site: str) -> list[dict[str, Any]]:
        path = self.folder / "runs/r" / site / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not all(any(row["step"] >= step for row in self.rows(site)) for site in self.names):
            assert time.monotonic() < deadline, self.says()
            assert self.slurm.state(self.jobs[0]) not in _OVER, self.says()
            time.sleep(0.1)

    def hold_until(self, words: str) -> None:
        """Freeze the ranks until the first job's log says something."""
        ranks = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if b"isthmus.train" in (command := path.read_bytes()) and str(self.folder).encode() in command
        ]
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while words not in self.says():
            assert time.monotonic() < deadline, self.says()
            time.sleep(0.2)
        for rank in ranks:
            os.kill(rank, signal.SIGCONT)

    def wait_for_end(self) -> None:
        for number, site in enumerate(self.names):
            deadline = time.monotonic() + _TIMEOUT_SECONDS
            while not self.rows(site) or self.rows(site)[-1]["step"] < 150 or not self._over(number):
                assert time.monotonic() < deadline, self.says()
                assert not (self._over(number) and self._outcome(site) != "completed"), self.says()
                time.sleep(0.5)

    def result(self, reference: dict[int, float]) -> dict[str, Any]:
        """Return what the run has made of it: the losses of the last attempt at each step against the reference."""
        found = {}
        for site in self.names:
            rows = self.rows(site)
            losses = {row["step"]: row["loss"] for row in rows}
            assert losses == reference, f"{site}: the losses differ"
            attempts = max(row["attempt"] for row in rows)
            assert attempts > 1, f"{site} was never interrupted"
            found[site] = {"attempts": attempts, "steps_made_again": len(rows) - len(losses)}
        return found

    def says(self) -> str:
        logs = sorted(self.folder.glob("runs/r/*/launch/job-*.log"))
        return "\n".join(f"{path}:\n{path.read_text()[-3000:]}" for path in logs) + self.slurm.tail()

    def _over(self, number: int) -> bool:
        follower = self.folder / "runs/r" / self.names[number] / "launch" / "job"
        job = follower.read_text().strip() if follower.exists() else self.jobs[number]
        return self.slurm.state(job) in _OVER

    def _outcome(self, site: str) -> str:
        return str(json.loads((self.folder / "runs/r" / site / "outcome.json").read_text()).get("status"))


def term(slurm: Slurm, folder: Path, reference: dict[int, float]) -> dict[str, Any]:
    """`scancel --signal=TERM`: the ranks save, the job queues again by itself."""
    drill = Drill(slurm, folder)
    drill.wait_for_step(15)
    slurm.run("scancel", "--signal=TERM", drill.jobs[0])
    drill.wait_for_end()
    found = drill.result(reference)
    assert found["one"]["steps_made_again"] == 0, found
    return found


def requeue(slurm: Slurm, folder: Path, reference: dict[int, float]) -> dict[str, Any]:
    """`scontrol requeue`: Slurm asks the job to end and starts it again."""
    drill = Drill(slurm, folder)
    drill.wait_for_step(15)
    slurm.run("scontrol", "requeue", drill.jobs[0])
    drill.wait_for_end()
    return drill.result(reference)


def limit(slurm: Slurm, folder: Path, reference: dict[int, float]) -> dict[str, Any]:
    """A time limit that comes in the middle: the ranks are told a minute before, save, and the job queues again."""
    drill = Drill(slurm, folder, time="30", signal_seconds=60)
    drill.wait_for_step(5)
    # However long the start has taken: Slurm looks at limits every 30 s, and the signal is due 60 s before this one.
    slurm.run("scontrol", "update", f"JobId={drill.jobs[0]}", f"TimeLimit={_minutes_run(slurm, drill.jobs[0]) + 2}")
    drill.hold_until("asked to stop")
    drill.wait_for_end()
    found = drill.result(reference)
    assert found["one"]["steps_made_again"] == 0, found
    return found


def step_daemon(slurm: Slurm, folder: Path, reference: dict[int, float]) -> dict[str, Any]:
    """The daemon of a node's step is killed, with the node's ranks."""
    return _kill_step_daemon(slurm, folder, reference, "n2")


def leader_step_daemon(slurm: Slurm, folder: Path, reference: dict[int, float]) -> dict[str, Any]:
    """The same on the node where the ranks meet: nobody is left to say which node to leave out."""
    return _kill_step_daemon(slurm, folder, reference, "n1")


def node(slurm: Slurm, folder: Path, reference: dict[int, float]) -> dict[str, Any]:
    """A node is lost with everything on it: the job goes on with another one."""
    drill = Drill(slurm, folder)
    drill.wait_for_step(15)
    slurm.lose_node("n2")
    drill.wait_for_end()
    slurm.start_node("n2")
    return drill.result(reference)


def two_sites(slurm: Slurm, folder: Path, reference: dict[int, float]) -> dict[str, Any]:
    """Two sites as two jobs; one is told to stop: both save after the same step, both queue again."""
    drill = Drill(slurm, folder, sites=2, nodes=1)
    drill.wait_for_step(15)
    slurm.run("scancel", "--signal=TERM", drill.jobs[1])
    drill.wait_for_end()
    return drill.result(reference)


DRILLS: dict[str, Callable[[Slurm, Path, dict[int, float]], dict[str, Any]]] = {
    "term": term,
    "requeue": requeue,
    "limit": limit,
    "step_daemon": step_daemon,
    "leader_step_daemon": leader_step_daemon,
    "node": node,
    "two_sites": two_sites,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(DRILLS), default=list(DRILLS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, running_slurm(("n1", "n2", "n3")) as slurm:
        folder = arguments.folder or Path(scratch)
        for name in arguments.only:
            reference = _reference(folder, sites=2 if name == "two_sites" else 1)
            started = time.monotonic()
            where = Path(tempfile.mkdtemp(dir=folder)) / name
            results[name] = {**DRILLS[name](slurm, where, reference), "seconds": round(time.monotonic() - started)}
            print(f"{name}: {results[name]}", flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def _reference(folder: Path, sites: int) -> dict[int, float]:
    """Return the losses of the same run without Slurm and without interruption."""
    where = folder / f"reference-{sites}"
    path = where / "runs/r" / ("main" if sites == 1 else "site1") / "metrics.jsonl"
    if not path.exists():
        where.mkdir(parents=True, exist_ok=True)
        if sites == 1:
            _isthmus(["launch", "launch.processes=2", *RUN], where, dict(os.environ))
        else:
            _isthmus(["lab", "lab.shape=none", "sync=exact", *RUN], where, dict(os.environ))
    return {row["step"]: row["loss"] for row in map(json.loads, path.read_text().splitlines())}


def _isthmus(words: list[str], where: Path, environment: dict[str, str]) -> None:
    environment = {**environment, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "isthmus.launch.cli", *words]
    result = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def _kill_step_daemon(slurm: Slurm, folder: Path, reference: dict[int, float], node: str) -> dict[str, Any]:
    drill = Drill(slurm, folder)
    drill.wait_for_step(15)
    for process in slurm.step_daemons(node):
        os.kill(process, signal.SIGKILL)
    drill.wait_for_end()
    return drill.result(reference)


def _minutes_run(slurm: Slurm, job: str) -> int:
    return int(slurm.run("squeue", "--noheader", f"--jobs={job}", "--format=%M").split(":")[0])


if __name__ == "__main__":
    main()
