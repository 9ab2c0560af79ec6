"""`isthmus lab` as a user meets it: sites over shaped links, what they cost, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.ranks import isthmus_cli

from isthmus.errors import EXIT_SITE_LOST, UserError
from isthmus.launch.lab.namespaces import open_namespace

RUN = ["model=nano", "train.global_batch=8", "train.micro_batch=2", "train.sequence_length=64"]
LOCAL = ["sync=local", "sync.every=4", "sync.fragments=2", "sync.overlap_steps=1"]


@pytest.fixture(scope="module")
def namespaces() -> None:
    try:
        open_namespace("10.78.0.1", offload=True).close()
    except UserError as error:
        pytest.skip(str(error))


def words(cache: Path, *more: str) -> list[str]:
    return ["lab", *RUN, f"data.cache_dir={cache}", *more]


def started_by(parent: int) -> list[int]:
    """Return the processes below a process that are still there."""
    found, waiting = [], [parent]
    while waiting:
        children = Path(f"/proc/{waiting[0]}/task/{waiting.pop(0)}/children")
        if children.exists():
            below = [int(word) for word in children.read_text().split()]
            found += below
            waiting += below
    return found


def test_two_sites_over_a_thin_link(namespaces: None, tmp_path: Path, shared_cache: Path) -> None:
    more = ["sync=exact", "train.steps=6", "lab.bandwidth_mbps=50", "lab.rtt_ms=10", "lab.reference=true"]
    result = isthmus_cli(*words(shared_cache, *more, "--json"), cwd=tmp_path)
    assert result.code == 0, result.err
    outcome = json.loads(result.out)
    first, second = outcome["sites"]
    assert (first["site"], second["site"], outcome["total"]["step"]) == ("site1", "site2", 6)
    assert first["loss"] == second["loss"] == outcome["reference"]["sites"][0]["loss"]
    # 1.05M parameters in fp32 over 50 Mbit/s take 0.67 s a step.
    assert first["step_seconds"] > 0.6
    assert first["utilisation"] < min(0.9, outcome["reference"]["total"]["utilisation"])
    assert outcome["tokens_per_second_ratio"] < 1
    assert first["bytes_sent"] == second["bytes_received"] > 6 * 4_000_000
    assert first["wire_bytes_sent"] > first["bytes_sent"]
    folder = tmp_path / outcome["folder"]
    rows = [json.loads(line) for line in (folder / "site1/metrics.jsonl").read_text().splitlines()]
    assert sum(row["wan_bytes_sent"] for row in rows) == first["bytes_sent"]
    assert rows[-1]["wan_links"]["site2"]["sent_mbps"] > 0
    assert rows[-1]["wan_transfer_seconds"] > 0
    assert "utilisation" in result.err or "util" in result.err


def test_loopback_needs_no_privilege_and_three_sites_of_two_ranks_train(tmp_path: Path, shared_cache: Path) -> None:
    more = [*LOCAL, "train.steps=6", "train.global_batch=12", "lab.shape=none", "lab.sites=3", "lab.ranks_per_site=2"]
    result = isthmus_cli(*words(shared_cache, *more, "parallel.tensor=2", "--json"), cwd=tmp_path)
    assert result.code == 0, result.err
    outcome = json.loads(result.out)
    assert [site["exit_code"] for site in outcome["sites"]] == [0, 0, 0]
    assert [site["rounds"] for site in outcome["sites"]] == [3, 3, 3]
    assert all("wire_bytes_sent" not in site for site in outcome["sites"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["sync=exact", "lab.bandwidth_mbps=-1"], "lab.bandwidth_mbps: is -1"),
        (["sync=exact", "lab.loss=1.5"], "lab.loss: is 1.5"),
        (["sync=exact", "lab.links=absent.yaml"], "absent.yaml"),
        (["sync=exact", "lab.reference=true"], "would be the same run"),
        (["sync=exact", "lab.sites=1"], "needs two sites"),
        (["lab.sites=2"], "would each train alone"),
        (["sync=exact", "lab.ranks_per_site=0"], "lab.ranks_per_site"),
        (["sync=exact", "train.global_batch=6", "train.micro_batch=2", "lab.sites=2"], "x 2 sites = 4 does not divide"),
        (["sync=exact", "sync.every=5"], "would do nothing with sync=exact"),
        (["sync=local", "sync.fragments=31"], "31 fragments do not fit into 30 steps"),
        (["sync=local", "sync.overlap_steps=30"], "choose from 0 to 29"),
        (["sync=local", "sync.merge=1"], "nothing would arrive"),
        (["sync=local", "sync.density=0.1"], "means nothing to int4"),
        (["sync=exact", "sync.error_decay=0.5"], "there is no error in fp32"),
        (["sync.wire=int8"], "would do nothing with sync=none"),
        (["sync=exact", "parallel.distributed_optimizer=false", "lab.ranks_per_site=2"], "a copy of everything"),
        (["sync=local", "sync.outer_momentum=1"], "sync.outer_momentum"),
        (["sync=exact", "lane.streams=0"], "lane.streams"),
        (["sync=exact", "lane.port_range=9-1"], "lane.port_range"),
        (["sync=exact", "lane.congestion=carrier_pigeon"], "lane.congestion"),
    ],
)
def test_what_cannot_be_is_refused(more: list[str], expected: str, tmp_path: Path, shared_cache: Path) -> None:
    result = isthmus_cli(*words(shared_cache, "train.steps=1", "lab.shape=none", *more), cwd=tmp_path)
    assert result.code == 2, result.err
    assert expected in result.err.splitlines()[-1] + result.out


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["links", "none"])
def test_ctrl_c_stops_all_sites_after_the_same_step(
    shape: str, namespaces: None, tmp_path: Path, shared_cache: Path
) -> None:
    more = [
        *LOCAL,
        "train.steps=5000",
        "lab.bandwidth_mbps=50",
        "lab.rtt_ms=10",
        f"lab.shape={shape}",
        "schedule=constant",
    ]
    more.append("schedule.warmup_tokens=0")
    with _lab(words(shared_cache, *more, "data.sources.web.max_epochs=null"), tmp_path) as lab:
        _wait_for_step(tmp_path, 3)
        below = started_by(lab.pid)
        lab.send_signal(signal.SIGINT)
        out, err = lab.communicate(timeout=90)
    assert lab.returncode == 130, out + err
    steps = {json.loads(path.read_text())["step"] for path in tmp_path.glob("runs/*/site*/outcome.json")}
    assert len(steps) == 1
    _assert_gone(below)


@pytest.mark.slow
def test_a_killed_lab_leaves_nothing(namespaces: None, tmp_path: Path, shared_cache: Path) -> None:
    with _lab(words(shared_cache, *LOCAL, "train.steps=5000", "lab.bandwidth_mbps=50"), tmp_path) as lab:
        _wait_for_step(tmp_path, 2)
        below = started_by(lab.pid)
        assert len(below) >= 5  # relay, two jails, two sites
        lab.kill()
        lab.wait()
    _assert_gone(below)


@pytest.mark.slow
def test_a_killed_site_ends_the_others_with_a_code_of_their_own(
    namespaces: None, tmp_path: Path, shared_cache: Path
) -> None:
    more = ["sync=exact", "train.steps=5000", "lane.deadline_seconds=5", "--json"]
    with _lab(words(shared_cache, *more), tmp_path) as lab:
        _wait_for_step(tmp_path, 2)
        jail = next(
            pid for pid in started_by(lab.pid) if b"site2/config.yaml" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(jail, signal.SIGKILL)
        out, _ = lab.communicate(timeout=90)
    first, second = json.loads(out)["sites"]
    assert first["exit_code"] == EXIT_SITE_LOST
    assert second["exit_code"] == lab.returncode == 128 + signal.SIGKILL
    (path,) = tmp_path.glob("runs/*/site1/outcome.json")
    assert "lane 0 to site site2" in json.loads(path.read_text())["error"]


class _lab:
    """A lab in the background, killed at the end if it is still there."""

    def __init__(self, arguments: list[str], cwd: Path) -> None:
        command = [sys.executable, "-m", "isthmus.launch.cli", *arguments]
        self.process: subprocess.Popen[str] = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "subprocess.Popen[str]":
        return self.process

    def __exit__(self, *exception: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _wait_for_step(root: Path, step: int, timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        rows = [path.read_text().splitlines() for path in root.glob("runs/*/site*/metrics.jsonl")]
        if len(rows) == 2 and all(len(lines) >= step for lines in rows):
            return
        time.sleep(0.2)
    raise AssertionError("the sites did not begin to train")


def _assert_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in processes):
        assert time.monotonic() < deadline, f"{[pid for pid in processes if _alive(pid)]} are still there"
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
