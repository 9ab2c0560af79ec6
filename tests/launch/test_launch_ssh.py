"""Sites over ssh: two that train together, and everything that can be wrong with reaching them."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.agents import stand_in
from support.ranks import CommandResult, free_port, isthmus_cli
from support.sshd import Sshd, running_sshd

RUN = ["launch=torchrun", "launch.ssh=true", "sites=sites.yaml", "sync=exact", "run.name=r"]
VERSIONS = '{"versions": {"isthmus": "0.0.9"}, "revision": null}'


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


def launch(root: Path, sshd: Sshd, *words: str, **changes: dict[str, Any]) -> CommandResult:
    """Launch two sites, each on an address of loopback and in a folder of its own."""
    at = {}
    for number, name in enumerate(("one", "two")):
        (root / name).mkdir(exist_ok=True)
        spec = {"hosts": [f"127.0.0.{number + 2}"], "ssh_options": sshd.options, "dir": str(root / name), "threads": 1}
        at[name] = spec | {"python": str(stand_in(root)), "env": {"BEHAVIOUR": "stay"}} | changes.get(name, {})
    (root / "sites.yaml").write_text(json.dumps({"store": f"127.0.0.1:{free_port()}", "at": at}))
    return isthmus_cli("launch", *RUN, "train.steps=2000", *words, cwd=root)


def rows(root: Path, site: str) -> list[dict[str, Any]]:
    path = root / site / "runs/r" / site / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def alive(path: Path) -> bool:
    return Path(f"/proc/{path.read_text().strip()}").exists()


@pytest.mark.slow
def test_two_sites_train_are_looked_at_and_stop_together(sshd: Sshd, tmp_path: Path, shared_cache: Path) -> None:
    real: dict[str, Any] = {"python": sys.executable, "env": {}}
    words = ["train.global_batch=4", "train.sequence_length=32", "log.tensorboard=false", "schedule=constant"]
    words += [f"data.cache_dir={shared_cache}", "data.sources.web.max_epochs=null", "schedule.warmup_tokens=0"]
    result = launch(tmp_path, sshd, *words, one=real, two=real)
    assert result.code == 0, result.err
    try:
        _look_and_stop(tmp_path)
    finally:
        for path in tmp_path.glob("*/runs/r/*/launch/node-0.json"):
            with suppress(ProcessLookupError):
                os.kill(json.loads(path.read_text())["process"], signal.SIGKILL)
    snapshot = json.loads((tmp_path / "runs/r/launch/environment.json").read_text())
    assert {"torch", "megatron-core", "isthmus"} <= set(snapshot["versions"])
    assert snapshot["command"][:2] == ["isthmus", "launch"]


def _look_and_stop(tmp_path: Path) -> None:
    deadline = time.monotonic() + 600
    while min(len(rows(tmp_path, "one")), len(rows(tmp_path, "two"))) < 3:
        assert time.monotonic() < deadline, (tmp_path / "one/runs/r/one/launch/node-0.log").read_text()
        time.sleep(0.2)
    status = json.loads(isthmus_cli("launch", "status", "runs/r", "--json", cwd=tmp_path).out)
    assert [(site["site"], site["alive"], site["ranks"]) for site in status["sites"]] == [
        ("one", True, 1),
        ("two", True, 1),
    ]
    assert "running" in isthmus_cli("launch", "status", "runs/r", cwd=tmp_path).out
    logs = isthmus_cli("launch", "logs", "runs/r", "two", "console", cwd=tmp_path)
    assert "two has met one" in logs.out, logs.err
    stop = isthmus_cli("launch", "stop", "runs/r", "one", cwd=tmp_path)
    assert stop.code == 0, stop.err
    assert isthmus_cli("launch", "stop", "runs/r", cwd=tmp_path).code == 0
    one, two = rows(tmp_path, "one"), rows(tmp_path, "two")
    assert [row["loss"] for row in one] == [row["loss"] for row in two]
    outcomes = [json.loads((tmp_path / site / "runs/r" / site / "outcome.json").read_text()) for site in ("one", "two")]
    assert [outcome["status"] for outcome in outcomes] == ["preempted", "preempted"]
    assert len({outcome["step"] for outcome in outcomes}) == 1


@pytest.mark.parametrize("case", ["unreachable", "no key", "no folder", "no isthmus", "other versions"])
def test_a_site_that_cannot_start_is_one_line_and_nothing_is_started(case: str, sshd: Sshd, tmp_path: Path) -> None:
    dead = replace(sshd, port=free_port())
    changes, expected = {
        "unreachable": ({"ssh_options": dead.options}, "127.0.0.3 cannot be reached: ssh: connect to host"),
        "no key": ({"ssh_options": sshd.without_key}, "@127.0.0.3: Permission denied"),
        "no folder": ({"dir": "/nowhere/at/all"}, "sites.at.two.dir: 127.0.0.3: "),
        "no isthmus": ({"python": "/nowhere/python"}, "sites.at.two.python: 127.0.0.3: "),
        "other versions": (
            {"python": str(stand_in(tmp_path, VERSIONS))},
            "sites.at.two: isthmus 0.0.9 on 127.0.0.3, 0.1.0 on this machine",
        ),
    }[case]
    result = launch(tmp_path, sshd, two=changes)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert expected in result.err
    assert not list(tmp_path.glob("*/runs/r/*/launch/calls")), "something was started"


def test_when_one_agent_refuses_what_had_started_is_stopped(sshd: Sshd, tmp_path: Path) -> None:
    result = launch(tmp_path, sshd, two={"env": {"BEHAVIOUR": "refuse"}})
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert "sites.at.two: 127.0.0.3: train.device=cuda: there is no CUDA device here" in result.err
    (process,) = tmp_path.glob("one/runs/r/one/launch/process")
    deadline = time.monotonic() + 10
    while alive(process):
        assert time.monotonic() < deadline, "the first site's agent is still there"
        time.sleep(0.05)
    assert not (tmp_path / "runs/r/launch/launch.json").exists()


def test_without_ssh_the_commands_are_shown(sshd: Sshd, tmp_path: Path) -> None:
    result = launch(tmp_path, sshd, "launch.ssh=false")
    assert result.code == 0, result.err
    assert "two: copy runs/r/launch/two-0.sh to 127.0.0.3 and run there: bash two-0.sh" in result.out
    assert not list(tmp_path.glob("*/runs/r/*/launch/calls"))
    assert (tmp_path / "runs/r/launch/two-0.sh").read_text().startswith("#!/usr/bin/env bash\n")


def everywhere(root: Path, sshd: Sshd, *words: str, host: str = "127.0.0.3") -> CommandResult:
    """One site on this machine and one of two nodes behind ssh, in one command."""
    for name in ("one", "two"):
        (root / name).mkdir(exist_ok=True)
    two = {"hosts": [host, "127.0.0.4"], "nodes": 2, "ssh_options": sshd.options, "meeting_port": free_port()}
    at = {
        "one": {"dir": str(root / "one"), "threads": 1, "ranks_per_node": 2},
        "two": two | {"dir": str(root / "two"), "python": sys.executable, "threads": 1},
    }
    (root / "sites.yaml").write_text(json.dumps({"store": f"127.0.0.1:{free_port()}", "at": at}))
    quick = [
        "preflight.matmul_seconds=0.1",
        "preflight.link_seconds=0.2",
        "preflight.probes=100",
        "preflight.disk_mb=1",
    ]
    given = ["launch=torchrun", "launch.ssh=true", "sites=sites.yaml", "sync=local", "run.name=r", "train.steps=20"]
    return isthmus_cli("launch", "preflight", *given, *quick, *words, cwd=root)


def test_one_preflight_looks_at_all_sites_and_all_their_nodes(sshd: Sshd, tmp_path: Path, shared_cache: Path) -> None:
    # More than any link carries: ranks that fail and ranks that do not would wait for each other.
    result = everywhere(tmp_path, sshd, "--json", f"data.cache_dir={shared_cache}", "preflight.link_mbps=1e9")
    assert result.code == 90, result.err
    report = json.loads(result.out)
    assert {name: site["size"] for name, site in report["sites"].items()} == {"one": 2, "two": 2}
    assert [link["between"] for link in report["links"]] == [["one", "two"]]
    assert (tmp_path / "two/runs/r/two/preflight.json").exists()
    # On one machine that other tests keep busy, only speeds may fail.
    failed = [finding for finding in report["findings"] if finding["status"] == "fail"]
    assert {finding["check"] for finding in failed} <= {"speed", "collectives", "bandwidth", "asymmetry", "loss"}, (
        failed
    )


def test_a_machine_that_is_not_reached_ends_the_preflight_of_all(sshd: Sshd, tmp_path: Path) -> None:
    result = everywhere(tmp_path, replace(sshd, port=free_port()))
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert "isthmus: sites.at.two.hosts: 127.0.0.3 cannot be reached: ssh: connect to host" in result.err
