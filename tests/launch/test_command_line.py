"""The command as a user meets it: what it refuses, in one line and with exit code 2, and how runs start and stop."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import isthmus_cli

REPOSITORY = Path(__file__).parents[2]
TINY_RUN = ["train.steps=3", "train.global_batch=4", "train.sequence_length=32"]


def metrics(root: Path) -> list[dict[str, Any]]:
    (path,) = root.glob("runs/*/main/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


REFUSED = {
    "unknown key": (["train.stepz=3"], "did you mean 'train.steps'"),
    "wrong type": (["train.steps=many"], "train.steps"),
    "unknown choice": (["model=giant"], "choose one of"),
    "missing file": (["data=absent.yaml"], "absent.yaml"),
    "no length": ([], "train.steps, train.tokens: neither"),
    "two lengths": (["train.steps=1", "train.tokens=10"], "both are given"),
    "tensor and heads": (["train.steps=1", "parallel.tensor=3"], "3"),
    "too few processes": (["train.steps=1", "parallel.pipeline=2"], "launch.processes=2"),
    "batch": (["train.steps=1", "train.global_batch=9", "train.micro_batch=2"], "does not divide"),
    "fp8": (["train.steps=1", "train.precision=fp8"], "train.precision=fp8"),
    "sequence length": (["train.steps=1", "train.sequence_length=0"], "sequence_length"),
    "learning rate": (["train.steps=1", "optim.learning_rate=-1"], "optim.learning_rate"),
    "schedule": (["train.steps=1", "schedule=wsd", "schedule.warmup_fraction=0.9"], "exceed the run's"),
    "run name": (["train.steps=1", "run.name=a/b"], "run.name"),
    "too long a sequence": (["train.steps=1", "train.sequence_length=100000"], "training tokens"),
    "too large a batch": (["train.steps=1", "train.global_batch=1000000"], "fewer than one batch"),
    "epochs": (
        ["train.steps=9000", *(f"data.sources.{name}.max_epochs=0.5" for name in ("web", "transcripts", "synthetic"))],
        "max_epochs leaves",
    ),
    "not a number": (["train.steps=1", "optim.clip_grad_norm=nan"], "optim.clip_grad_norm: is nan"),
    "Hydra's own keys": (["train.steps=1", "hydra.run.dir=x"], "would do nothing"),
    "option": (["--jsn"], "is no option"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_gets_one_line_and_exit_code_2(case: str, tmp_path: Path, shared_cache: Path) -> None:
    words, expected = REFUSED[case]
    cache = [] if case == "option" else [f"data.cache_dir={shared_cache}"]
    result = isthmus_cli("train", *words, *cache, cwd=tmp_path)
    assert result.code == 2, result.err
    (line,) = result.err.splitlines()
    assert line.startswith("isthmus: ")
    assert expected in line
    assert not list(tmp_path.glob("runs/*/main/metrics.jsonl")), "something was started"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused(tmp_path: Path) -> None:
    result = isthmus_cli("train", "train.steps=1", "train.device=cuda", cwd=tmp_path)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "there is no CUDA device" in result.err


def test_pipeline_must_divide_the_layers(tmp_path: Path) -> None:
    words = ["launch.processes=3", "train.steps=1", "parallel.pipeline=3"]
    result = isthmus_cli("launch", *words, cwd=tmp_path)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "3 stages do not divide the 4 layers" in result.err


def test_tensor_parallelism_must_divide_the_heads(tmp_path: Path) -> None:
    result = isthmus_cli("launch", "launch.processes=3", "train.steps=1", "parallel.tensor=3", cwd=tmp_path)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "3 does not divide the 4 attention heads" in result.err


def test_a_run_folder_that_cannot_be_written_is_refused(tmp_path: Path, shared_cache: Path) -> None:
    (tmp_path / "occupied").write_text("a file where a folder should be")
    words = ["train.steps=1", "run.dir=occupied", f"data.cache_dir={shared_cache}"]
    result = isthmus_cli("train", *words, cwd=tmp_path)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "run.dir" in result.err


@pytest.mark.parametrize(("text", "expected"), [("", "empty"), ("A few words. " * 3, "fewer than one sample")])
def test_a_corpus_that_is_empty_or_too_small_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "mix.yaml").write_text("sources: {notes: {path: text.txt}}\n")
    words = ["train.steps=1", "data=mix.yaml", f"data.cache_dir={tmp_path}/cache"]
    result = isthmus_cli("train", *words, cwd=tmp_path)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "data.sources.notes" in result.err
    assert expected in result.err


def test_a_users_own_text_trains(tmp_path: Path) -> None:
    pages = REPOSITORY / "data/samples/web"
    (tmp_path / "mix.yaml").write_text(f"sources: {{pages: {{path: {pages}}}}}\nvocab_size: 512\n")
    words = ["model=nano", "data=mix.yaml", "eval.every_steps=2", f"data.cache_dir={tmp_path}/cache"]
    result = isthmus_cli("train", *words, *TINY_RUN, cwd=tmp_path)
    assert result.code == 0, result.err
    assert metrics(tmp_path)[-1]["held_out_loss"].keys() == {"pages"}


def test_the_same_command_gives_the_same_losses_to_the_last_bit(tmp_path: Path, shared_cache: Path) -> None:
    losses = []
    for name in ("first", "second"):
        words = [f"run.dir={name}/runs", f"data.cache_dir={shared_cache}", "eval.every_steps=2"]
        assert isthmus_cli("train", *TINY_RUN, *words, cwd=tmp_path).code == 0
        rows = metrics(tmp_path / name)
        losses.append([(row["loss"], row["grad_norm"], row.get("held_out_loss")) for row in rows])
    assert losses[0] == losses[1]


def test_a_second_attempt_says_so_and_keeps_the_first(tmp_path: Path, shared_cache: Path) -> None:
    words = ["train", *TINY_RUN, f"data.cache_dir={shared_cache}", "checkpoint.resume=never"]
    assert isthmus_cli(*words, cwd=tmp_path).code == 0
    again = isthmus_cli(*words, cwd=tmp_path)
    assert "attempt 2" in again.out
    assert [(row["attempt"], row["step"]) for row in metrics(tmp_path)] == [(a, s) for a in (1, 2) for s in (1, 2, 3)]


def test_json_prints_one_object_and_nothing_else(tmp_path: Path, shared_cache: Path) -> None:
    result = isthmus_cli("train", "--json", *TINY_RUN, f"data.cache_dir={shared_cache}", cwd=tmp_path)
    summary = json.loads(result.out)
    assert summary["status"] == "completed"
    assert summary["step"] == 3


def test_help_names_groups_and_keys() -> None:
    result = isthmus_cli("train", "--help")
    assert result.code == 0
    for word in ("model", "nano", "405b", "parallel.tensor", "optim.learning_rate", "data.sources", "experiment"):
        assert word in result.out


def test_launch_starts_ranks_that_train_as_one(tmp_path: Path, shared_cache: Path) -> None:
    cache = f"data.cache_dir={shared_cache}"
    layout = ["launch.processes=4", "parallel.tensor=2", "parallel.pipeline=2", "eval.every_steps=3"]
    assert isthmus_cli("train", "eval.every_steps=3", *TINY_RUN, cache, "run.dir=one/runs", cwd=tmp_path).code == 0
    launched = isthmus_cli("launch", *layout, *TINY_RUN, cache, "run.dir=four/runs", cwd=tmp_path)
    assert launched.code == 0, launched.err
    one, four = metrics(tmp_path / "one"), metrics(tmp_path / "four")
    assert [row["step"] for row in four] == [0, 1, 2, 3]
    for left, right in zip(one, four, strict=True):
        assert (right["loss"] or 0) == pytest.approx(left["loss"] or 0, rel=1e-4)
        assert right.get("held_out_loss", {}) == pytest.approx(left.get("held_out_loss", {}), rel=1e-4)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, shared_cache: Path) -> None:
    folder = tmp_path / "runs/mine/main"
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text('{"status": "running", "process": 1}')
    words = ["train", *TINY_RUN, "run.name=mine", f"data.cache_dir={shared_cache}"]
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = isthmus_cli(*words, cwd=tmp_path)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "another run is writing" in result.err
    assert json.loads((folder / "outcome.json").read_text())["process"] == 1, "the other run's outcome was overwritten"
    assert isthmus_cli(*words, cwd=tmp_path).code == 0


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_and_its_run_is_not_called_completed(tmp_path: Path, shared_cache: Path) -> None:
    command = [sys.executable, "-m", "isthmus.launch.cli", "launch", "launch.processes=2", "train.steps=100000"]
    command.append("restart.without_progress=0")
    process = subprocess.Popen(
        [*command, *TINY_RUN[1:], f"data.cache_dir={shared_cache}"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not any(path.stat().st_size for path in tmp_path.glob("runs/*/main/metrics.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < deadline, "it never made a step"
        time.sleep(0.2)
    (outcome,) = tmp_path.glob("runs/*/main/outcome.json")
    os.kill(json.loads(outcome.read_text())["process"], signal.SIGKILL)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert json.loads(outcome.read_text())["status"] in ("running", "failed")
    assert err


@pytest.mark.slow
def test_torchrun_starts_the_same_program(tmp_path: Path, shared_cache: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "isthmus.train", "model=nano", "parallel.tensor=2", *TINY_RUN, f"data.cache_dir={shared_cache}"]
    result = subprocess.run([*torchrun, *words], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert metrics(tmp_path)[-1]["step"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("words", [["train"], ["launch", "launch.processes=2"]], ids=["train", "launch"])
def test_ctrl_c_ends_cleanly(words: list[str], tmp_path: Path, shared_cache: Path) -> None:
    command = [sys.executable, "-m", "isthmus.launch.cli", *words, "train.steps=100000", *TINY_RUN[1:]]
    process = subprocess.Popen(
        [*command, f"data.cache_dir={shared_cache}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while not any(path.stat().st_size for path in tmp_path.glob("runs/*/main/metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never made a step"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted at step" in out
    (outcome,) = tmp_path.glob("runs/*/main/outcome.json")
    assert json.loads(outcome.read_text())["status"] == "interrupted"
