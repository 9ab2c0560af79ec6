"""Runs that fail are started again and lose nothing; runs that are told to stop save and say how to go on."""

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

RUN = ["train.steps=60", "train.global_batch=4", "train.sequence_length=32", "log.tensorboard=false", "run.name=r"]


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "runs/r/main/metrics.jsonl").read_text().splitlines()]


def losses(root: Path) -> dict[int, float]:
    """The loss of each step, of the last attempt that made it."""
    return {row["step"]: row["loss"] for row in rows(root)}


def start(root: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "isthmus.launch.cli", *words]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(root: Path, step: int, process: "subprocess.Popen[str]") -> None:
    path, deadline = root / "runs/r/main/metrics.jsonl", time.monotonic() + 600
    while not path.exists() or not any(f'"step": {step},' in line for line in path.read_text().splitlines()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(word) for word in path.read_text().split()]
    return sorted(found)


def below(process: int) -> list[int]:
    found = children(process)
    return found + [deeper for child in found for deeper in below(child)]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> dict[int, float]:
    root = tmp_path_factory.mktemp("quiet")
    words = ["launch", "launch.processes=2", *RUN, f"data.cache_dir={shared_cache}", "checkpoint.every_steps=0"]
    assert isthmus_cli(*words, cwd=root).code == 0
    return losses(root)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_nothing_is_lost(
    quiet: dict[int, float], tmp_path: Path, shared_cache: Path
) -> None:
    words = ["launch.processes=2", *RUN, f"data.cache_dir={shared_cache}", "checkpoint.every_steps=10"]
    process = start(tmp_path, "launch", *words)
    wait_for_step(tmp_path, 25, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "starting again" in err
    assert "resumed step" in out
    assert "times the median of its peers" in out
    assert losses(tmp_path) == quiet
    assert {row["attempt"] for row in rows(tmp_path)} == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_run_that_a_scheduler_stops_saves_and_goes_on_with_the_same_command(
    number: signal.Signals, quiet: dict[int, float], tmp_path: Path, shared_cache: Path
) -> None:
    words = ["launch.processes=2", *RUN, f"data.cache_dir={shared_cache}", "checkpoint.every_steps=0"]
    process = start(tmp_path, "launch", *words)
    wait_for_step(tmp_path, 5, process)
    # Slurm sends it to every process of a step: supervisor, ranks, and what writes their checkpoints.
    for everyone in (process.pid, *below(process.pid)):
        os.kill(everyone, number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 85, err
    assert "preempted at step" in out
    assert json.loads((tmp_path / "runs/r/main/outcome.json").read_text())["status"] == "preempted"
    again = isthmus_cli("launch", *words, cwd=tmp_path)
    assert again.code == 0, again.err
    assert losses(tmp_path) == quiet
    steps = [row["step"] for row in rows(tmp_path)]
    assert steps == sorted(set(steps)), "a step was made twice"


@pytest.mark.slow
def test_a_run_that_fails_again_and_again_ends_with_a_diagnosis(tmp_path: Path, shared_cache: Path) -> None:
    words = ["launch.processes=2", *RUN, f"data.cache_dir={shared_cache}", "restart.without_progress=1"]
    process = start(tmp_path, "launch", *words, "restart.delay_seconds=0.1")
    deadline = time.monotonic() + 300
    killed: set[int] = set()
    while process.poll() is None:
        assert time.monotonic() < deadline
        for child in children(process.pid):
            if child not in killed:
                killed.add(child)
                os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    _, err = process.communicate()
    assert process.returncode == 88, err
    assert "no new step in 2 attempts" in err


def test_list_and_verify_name_what_is_broken(tmp_path: Path, shared_cache: Path) -> None:
    words = ["train", "train.steps=4", *RUN[1:], f"data.cache_dir={shared_cache}", "checkpoint.every_steps=2"]
    assert isthmus_cli(*words, cwd=tmp_path).code == 0
    listed = json.loads(isthmus_cli("checkpoint", "list", "runs/r", "--json", cwd=tmp_path).out)["checkpoints"]
    assert [(row["step"], row["state"], row["tokens"]) for row in listed] == [(4, "whole", 512), (2, "whole", 256)]
    assert isthmus_cli("checkpoint", "verify", "runs/r", cwd=tmp_path).code == 0
    path = tmp_path / listed[0]["folder"] / "rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    result = isthmus_cli("checkpoint", "verify", "runs/r", cwd=tmp_path)
    assert result.code == 1
    assert "rank-00000.safetensors is damaged" in result.out
    # The broken one is set aside, the one before it is taken, and the run says so.
    again = isthmus_cli(*words, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "set aside as quarantined-step-0000000004-a0001" in again.out
    assert "resumed step 2" in again.out
    assert isthmus_cli("checkpoint", "list", "elsewhere", cwd=tmp_path).code == 2
    # Where none is whole, what was learnt is in what is set aside: to begin again is for the user to say.
    for path in tmp_path.glob("runs/r/main/checkpoints/step-*/rank-00000.safetensors"):
        path.write_bytes(content[: path.stat().st_size].ljust(path.stat().st_size, b"\0"))
    for _ in range(2):
        refused = isthmus_cli(*words, cwd=tmp_path)
        assert refused.code == 2
        assert "checkpoint.resume: no checkpoint is whole (quarantined-step-" in refused.err
    assert isthmus_cli(*words, "checkpoint.resume=never", cwd=tmp_path).code == 0


def test_an_edited_mixture_goes_on_from_the_sample_reached(tmp_path: Path, shared_cache: Path) -> None:
    words = ["train", *RUN[1:], f"data.cache_dir={shared_cache}"]
    assert isthmus_cli(*words, "train.steps=2", cwd=tmp_path).code == 0
    edited = isthmus_cli(*words, "train.steps=4", "data.sources.web.weight=5", cwd=tmp_path)
    assert edited.code == 0, edited.err
    assert "the mixture was edited: from sample" in edited.out
    assert "data.sources.web.weight has changed" in edited.out
    metrics = [json.loads(line) for line in (tmp_path / "runs/r/main/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics if "loss" in row] == [1, 2, 3, 4]


def test_a_change_that_makes_another_run_is_refused_by_name(tmp_path: Path, shared_cache: Path) -> None:
    words = ["train", "train.steps=2", *RUN[1:], f"data.cache_dir={shared_cache}"]
    assert isthmus_cli(*words, cwd=tmp_path).code == 0
    refused = isthmus_cli(*words, "train.seed=7", cwd=tmp_path)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "train.seed: is 7, the checkpoint was made with 0" in refused.err
    longer = isthmus_cli("train", "train.steps=3", *words[2:], cwd=tmp_path)
    assert longer.code == 0
    assert "not exact: train.steps has changed" in longer.out
    anew = isthmus_cli(*words, "train.seed=7", "checkpoint.resume=never", cwd=tmp_path)
    assert anew.code == 0
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 1, 2]
