"""Jobs on a real Slurm: submitted, told to stop, queued again, moved off a node; the ranks are stand-ins.

benchmarks/slurm_drill.py does the same with training runs, whose losses must come out exact.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.agents import stand_in
from support.ranks import CommandResult, isthmus_cli
from support.slurm import Slurm, Unavailable, running_slurm

RUN = ["launch=slurm", "sites=sites.yaml", "train.steps=3", "run.name=r"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    try:
        with running_slurm(("n1", "n2", "n3")) as running:
            yield running
    except Unavailable as error:
        pytest.skip(str(error))


def launch(slurm: Slurm, root: Path, sites: dict[str, dict[str, Any]], *words: str) -> CommandResult:
    table: dict[str, Any] = {"at": {}}
    for name, spec in sites.items():
        table["at"][name] = {"python": str(stand_in(root)), "threads": 1, **spec}
    if len(sites) > 1:
        table["store"] = "127.0.0.1:29400"
        words = ("sync=exact", *words)
    (root / "sites.yaml").write_text(json.dumps(table))
    return isthmus_cli("launch", *RUN, *words, cwd=root, environment=slurm.environment)


def job_of(root: Path, site: str) -> str:
    record = json.loads((root / "runs/r/launch/launch.json").read_text())
    return str(next(entry["job"] for entry in record["sites"] if entry["name"] == site))


def calls(root: Path, site: str) -> list[list[str]]:
    """Rank of the node, nodes, its name, restarts and threads of every agent that was started."""
    path = root / "runs/r" / site / "launch/calls"
    return sorted(line.split() for line in path.read_text().splitlines()) if path.exists() else []


def wait_for_calls(root: Path, site: str, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(calls(root, site)) < count:
        assert time.monotonic() < deadline, [path.read_text() for path in root.glob("runs/r/*/launch/job-*.log")]
        time.sleep(0.1)


def test_a_job_that_is_told_to_stop_queues_again_by_itself(slurm: Slurm, tmp_path: Path) -> None:
    spec = {"nodes": 2, "env": {"BEHAVIOUR": "wait"}}
    result = launch(slurm, tmp_path, {"one": spec})
    assert result.code == 0, result.err
    job = job_of(tmp_path, "one")
    assert f"one: started, job {job}" in result.out
    wait_for_calls(tmp_path, "one", 2)
    again = launch(slurm, tmp_path, {"one": spec})
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "one is running" in again.err
    slurm.run("scancel", "--signal=TERM", job)
    wait_for_calls(tmp_path, "one", 4)
    assert slurm.wait_for(job, {"COMPLETED", "FAILED"}) == "COMPLETED"
    found = calls(tmp_path, "one")
    assert [call[:2] + call[3:] for call in found] == [
        ["0", "2", "0", "1"],
        ["0", "2", "1", "1"],
        ["1", "2", "0", "1"],
        ["1", "2", "1", "1"],
    ]
    status = isthmus_cli("launch", "status", "runs/r", "--json", cwd=tmp_path, environment=slurm.environment)
    (site,) = json.loads(status.out)["sites"]
    assert (site["job"], site["job_state"]) == (job, "COMPLETED")


def test_stop_ends_it_for_good(slurm: Slurm, tmp_path: Path) -> None:
    assert launch(slurm, tmp_path, {"one": {"env": {"BEHAVIOUR": "wait"}}}).code == 0
    wait_for_calls(tmp_path, "one", 1)
    result = isthmus_cli("launch", "stop", "runs/r", cwd=tmp_path, environment=slurm.environment)
    assert result.code == 0, result.err
    assert "one: asked to save and end" in result.out
    assert slurm.state(job_of(tmp_path, "one")) == "FAILED", "ended with 85, and not queued again"
    assert len(calls(tmp_path, "one")) == 1


def test_a_plain_scancel_is_not_undone(slurm: Slurm, tmp_path: Path) -> None:
    assert launch(slurm, tmp_path, {"one": {"env": {"BEHAVIOUR": "wait"}}}).code == 0
    wait_for_calls(tmp_path, "one", 1)
    slurm.run("scancel", job_of(tmp_path, "one"))
    assert slurm.wait_for(job_of(tmp_path, "one"), {"CANCELLED", "PENDING", "FAILED"}) == "CANCELLED"


def test_a_node_that_failed_is_kept_out_of_the_job_that_follows(slurm: Slurm, tmp_path: Path) -> None:
    assert launch(slurm, tmp_path, {"one": {"nodes": 2, "env": {"BEHAVIOUR": "lose"}}}).code == 0
    wait_for_calls(tmp_path, "one", 4)
    follower = (tmp_path / "runs/r/one/launch/job").read_text().strip()
    assert slurm.wait_for(follower, {"COMPLETED", "FAILED"}) == "COMPLETED"
    assert slurm.run("squeue", "--noheader", "--states=all", f"--jobs={follower}", "--format=%N") == "n[1,3]"


def test_sites_as_tasks_of_an_array(slurm: Slurm, tmp_path: Path) -> None:
    spec = {"env": {"BEHAVIOUR": "wait"}}
    assert launch(slurm, tmp_path, {"one": spec, "two": spec}, "launch.array=true").code == 0
    for site in ("one", "two"):
        wait_for_calls(tmp_path, site, 1)
    stop = isthmus_cli("launch", "stop", "runs/r", cwd=tmp_path, environment=slurm.environment)
    assert stop.code == 0, stop.err
    assert [job_of(tmp_path, site).partition("_")[2] for site in ("one", "two")] == ["0", "1"]
    (config,) = {path.read_text().count("name: two") for path in tmp_path.glob("runs/r/two/launch/config.yaml")}
    assert config == 1


def test_a_task_of_an_array_leaves_a_node_without_the_others(slurm: Slurm, tmp_path: Path) -> None:
    sites = {"one": {"env": {"BEHAVIOUR": "refuse"}}, "two": {"env": {"BEHAVIOUR": "lose"}}}
    assert launch(slurm, tmp_path, sites, "launch.array=true").code == 0
    wait_for_calls(tmp_path, "two", 2)
    follower = (tmp_path / "runs/r/two/launch/job").read_text().strip()
    assert follower.endswith("_1")
    assert slurm.wait_for(follower, {"COMPLETED", "FAILED"}) == "COMPLETED"
    assert len(calls(tmp_path, "one")) == 1
    assert list(tmp_path.glob("runs/r/two/launch/job-*_1.log"))


@pytest.mark.parametrize(
    ("slurm_keys", "words"),
    [({"partition": "nowhere"}, "invalid partition specified: nowhere"), ({"constraint": "x"}, "nvalid feature")],
)
def test_what_slurm_refuses_is_one_line_and_no_job(
    slurm_keys: dict[str, str], words: str, slurm: Slurm, tmp_path: Path
) -> None:
    before = slurm.run("squeue", "--noheader", "--states=all")
    good = {"env": {"BEHAVIOUR": "wait"}}
    result = launch(slurm, tmp_path, {"one": good, "two": {**good, "slurm": slurm_keys}})
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert result.err.startswith("isthmus: sites.at.two.slurm: ")
    assert words in result.err
    assert slurm.run("squeue", "--noheader", "--states=all") == before


def test_a_preflight_runs_in_a_job_of_its_own(slurm: Slurm, tmp_path: Path, shared_cache: Path) -> None:
    table = {"at": {"one": {"python": sys.executable, "threads": 1, "nodes": 2, "slurm": {"time": "10"}}}}
    (tmp_path / "sites.yaml").write_text(json.dumps(table))
    quick = ["preflight.matmul_seconds=0.1", "preflight.disk_mb=1", f"data.cache_dir={shared_cache}"]
    words = ["launch=slurm", "sites=sites.yaml", "run.name=r", "train.steps=20", *quick]
    result = isthmus_cli("launch", "preflight", *words, "--json", cwd=tmp_path, environment=slurm.environment)
    assert result.code in (0, 90), result.err
    report = json.loads(result.out)
    assert {name: site["size"] for name, site in report["sites"].items()} == {"one": 2}
    # Beside other tests a rank may seem slow.
    failed = {finding["check"] for finding in report["findings"] if finding["status"] == "fail"}
    assert failed <= {"speed", "collectives"}, report["findings"]
    table["at"]["one"]["slurm"]["partition"] = "nowhere"
    (tmp_path / "sites.yaml").write_text(json.dumps(table))
    refused = isthmus_cli("launch", "preflight", *words, cwd=tmp_path, environment=slurm.environment)
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert "isthmus: sites.at.one: this machine: " in refused.err
    assert "nvalid partition" in refused.err
