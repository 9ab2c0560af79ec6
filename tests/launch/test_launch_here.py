"""Sites beside each other on this machine, and the examples of docs/launch.md."""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.agents import stand_in
from support.ranks import isthmus_cli

from isthmus.launch.command import main

GUIDE = Path(__file__).parents[2] / "docs/launch.md"
RUN = "# @package _global_\ntrain: {steps: 10, global_batch: 64, micro_batch: 1}\nrun: {name: big}\n"


def sites_file(root: Path, **behaviours: str) -> str:
    at: dict[str, Any] = {}
    for name, behaviour in behaviours.items():
        (root / name).mkdir()
        at[name] = {"dir": str(root / name), "python": str(stand_in(root)), "env": {"BEHAVIOUR": behaviour}}
    (root / "sites.yaml").write_text(json.dumps({"store": "127.0.0.1:29400", "at": at}))
    return "sites=sites.yaml"


def test_a_site_that_refuses_ends_the_other_and_its_code_is_the_answer(tmp_path: Path) -> None:
    words = [sites_file(tmp_path, one="stay", two="refuse"), "sync=exact", "train.steps=3", "run.name=r"]
    result = isthmus_cli("launch", *words, cwd=tmp_path)
    assert result.code == 2, result.err
    assert "two: isthmus: train.device=cuda: there is no CUDA device here" in result.err.splitlines()
    status = json.loads(isthmus_cli("launch", "status", "runs/r", "--json", cwd=tmp_path).out)
    assert [(site["site"], site["kind"]) for site in status["sites"]] == [("one", "local"), ("two", "local")]
    _follows_logs_that_are_new(tmp_path)


def _follows_logs_that_are_new(tmp_path: Path) -> None:
    """As those of ranks that a restart has put on another node."""
    logs = tmp_path / "one/runs/r/one/logs"
    logs.mkdir(exist_ok=True)
    (logs / "rank-00000.log").write_text("2026-01-01 00:00:00,000 first\n")
    command = [sys.executable, "-m", "isthmus.launch.cli", "launch", "logs", "runs/r", "one", "--follow"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as follow:
        assert follow.stdout is not None
        assert follow.stdout.readline() == "rank-00000: 2026-01-01 00:00:00,000 first\n"
        (logs / "rank-00007.log").write_text("2026-01-01 00:00:01,000 second\nits second line\n")
        assert follow.stdout.readline() == "rank-00007: 2026-01-01 00:00:01,000 second\n"
        assert follow.stdout.readline() == "rank-00007: its second line\n"
        with (logs / "rank-00000.log").open("a") as file:
            file.write("2026-01-01 00:00:02,000 third\n")
        assert follow.stdout.readline() == "rank-00000: 2026-01-01 00:00:02,000 third\n"
        follow.send_signal(signal.SIGINT)
        assert follow.wait() == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status", "nowhere"], "nowhere: holds no run; give a run folder"),
        (["stop", "nowhere"], "nowhere: holds no run"),
        (["logs", "nowhere"], "nowhere: holds no run"),
        (["halt", "runs/r"], "there is no 'halt'; use KEY=VALUE, or one of: status, stop, logs"),
        (["launch=slrum", "train.steps=1"], "launch=: there is no 'slrum'; choose one of: local, slurm, torchrun"),
        (["sites=nowhere.yaml", "train.steps=1"], "sites=: there is no file nowhere.yaml"),
        (["launch.procesess=2", "train.steps=1"], "did you mean 'launch.processes'?"),
        (["launch=torchrun", "--json", "train.steps=1"], "--json: is for one site on this machine"),
    ],
)
def test_mistakes_are_one_line(words: list[str], expected: str, tmp_path: Path) -> None:
    result = isthmus_cli("launch", *words, cwd=tmp_path)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert expected in result.err
    assert not (tmp_path / "runs").exists()


def test_the_guides_examples_are_what_it_says(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every sites file of the guide composes, and every command shows its scripts or is a verb."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my/run.yaml").write_text(RUN)
    text = GUIDE.read_text()
    for name, body in re.findall(r"```yaml\n# (\S+)\n(.*?)```", text, flags=re.DOTALL):
        (tmp_path / name).write_text(body)
    shown = 0
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[2] in ("status", "stop", "logs"):
                continue
            code = main([*words[2:], "launch.dry_run=true", f"data.cache_dir={shared_cache}"])
            captured = capsys.readouterr()
            assert code == 0, (line, captured.err)
            assert captured.out.count("#!/usr/bin/env bash") >= 1
            shown += 1
    assert shown >= 6
    for situation in ("A laptop", "One node", "Slurm", "Two clouds"):
        assert f"\n## {situation}\n" in text
