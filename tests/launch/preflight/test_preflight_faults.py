"""Faults planted in ranks, machines and disks of one site: each is found, named, and nothing else is accused."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.preflight import QUICK, failed, node_rank, the
from support.ranks import RankWorld, free_port, isthmus_cli, run_ranks, start_process


def words(tmp_path: Path, cache: Path, *more: str) -> list[str]:
    return [*QUICK, f"data.cache_dir={cache}", f"run.dir={tmp_path}/runs", "run.name=looked-at", *more]


@pytest.mark.slow
def test_each_bad_node_is_named_and_told_how_to_leave_it_out(tmp_path: Path, shared_cache: Path) -> None:
    # Three ranks share what a busy machine leaves them unequally, but not like this.
    more = words(tmp_path, shared_cache, "preflight.slow_rank=0.25", "preflight.wait_seconds=90", "train.threads=1")
    faults = {1: ["version", "clock"], 2: ["files"], 3: ["slow"]}
    result, *_ = run_ranks(node_rank, 4, free_port(), more, faults)
    assert result["code"] == 90
    assert sorted(failed(result)) == [
        ("clock", "main: node1"),
        ("open files", "main: node2, rank 2"),
        ("speed", "main: node3, rank 3"),
        ("versions", "main: node1"),
    ]
    assert "megatron-core 0.15.2, elsewhere" in the(result, "versions", "main: node1")["measured"]
    assert "+30.0 s" in the(result, "clock", "main: node1")["measured"]
    assert "200 may be open" in the(result, "open files", "main: node2, rank 2")["measured"]
    assert "ulimit -n" in the(result, "open files", "main: node2, rank 2")["fix"]
    slow = the(result, "speed", "main: node3, rank 3")
    assert "of the time: look for another process, a CPU quota or a stopped rank" in slow["fix"]
    assert "launch.exclude=[node3]" in slow["fix"]
    assert sorted(result["exclude"]) == ["node1", "node2", "node3"]
    assert not list((tmp_path / "runs/looked-at/main").glob(".preflight*")), "it left something behind"


def test_a_frozen_rank_is_named_and_the_others_end(tmp_path: Path, shared_cache: Path) -> None:
    # A busy machine must not make a slow rank of the others.
    more = words(tmp_path, shared_cache, "preflight.wait_seconds=6", "preflight.slow_rank=0.02")
    port = free_port()
    started = []
    try:
        for number in range(3):
            world = RankWorld(number, 3, "")
            started.append(start_process(node_rank, (world, port, more, {2: ["frozen"]})))
        pipe = started[0][1]
        assert pipe.poll(120), "rank 0 waits for ever"
        broke, result = pipe.recv()
        assert not broke, result
    finally:
        for process, _ in started:
            process.kill()
            process.join()
    assert failed(result) == [("ranks", "main: rank 2")]
    assert ("collectives", "main") in failed(result, "warn")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_for_a_save_is_found(small_disk: Path, shared_cache: Path) -> None:
    (result,) = run_ranks(node_rank, 1, 0, words(small_disk, shared_cache), {})
    assert (result["code"], failed(result)) == (90, [("disk", "main")])
    found = the(result, "disk", "main")
    assert "MB free" in found["measured"]
    assert "free space" in found["fix"]


def test_a_full_disk_is_found(small_disk: Path, shared_cache: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(8 << 20))
    (result,) = run_ranks(node_rank, 1, 0, words(small_disk, shared_cache), {})
    assert (result["code"], failed(result)) == (90, [("disk", "main: node0")])
    assert "No space left on device" in the(result, "disk", "main: node0")["measured"]
    assert result["files"] == {}, "and yet the report was printed"


def test_a_read_only_folder_is_found(small_disk: Path, shared_cache: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    (result,) = run_ranks(node_rank, 1, 0, words(small_disk, shared_cache), {})
    assert (result["code"], failed(result)) == (90, [("disk", "main: node0")])
    assert "Read-only file system" in the(result, "disk", "main: node0")["measured"]
    assert result["files"] == {}


def test_data_that_cannot_be_read_is_found(tmp_path: Path, shared_cache: Path) -> None:
    (tmp_path / "mix.yaml").write_text(f"sources: {{pages: {{path: {tmp_path}/absent}}}}\n")
    (result,) = run_ranks(node_rank, 1, 0, words(tmp_path, shared_cache, f"data={tmp_path}/mix.yaml"), {})
    assert (result["code"], failed(result)) == (90, [("data", "main: node0")])


@pytest.mark.slow
def test_the_command_starts_ranks_shows_a_table_and_prints_one_object(tmp_path: Path, shared_cache: Path) -> None:
    more = words(tmp_path, shared_cache, "launch.processes=2", "preflight.slow_rank=0.05", "--json")
    result = isthmus_cli("launch", "preflight", *more, cwd=tmp_path)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert failed(report) == []
    checks = {found["check"] for found in report["findings"]}
    assert checks == {"ranks", "versions", "device", "speed", "open files", "disk", "data", "collectives", "clock"}
    assert "what to do" in result.err
    assert report["sites"]["main"]["ranks"]["1"]["inside"]["wrong"] == 0
    folder = tmp_path / "runs/looked-at/main"
    assert sorted(path.name for path in folder.iterdir()) == ["cluster.yaml", "preflight.json"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["preflight.slow_rank=2"], "preflight.slow_rank: is 2.0; a share between 0 and 1"),
        (["preflight.probes=1"], "100 or more"),
        (["preflight.slow_rnk=0.5"], "did you mean 'preflight.slow_rank'"),
        (["preflight.asymmetry=nan"], "preflight.asymmetry"),
        (["launch.processes=none"], "launch.processes: Value 'none'"),
        (["parallel.pipeline=3"], "launch.processes=3"),
        (["--config", "x.yaml"], "--config: is of `isthmus train`"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(more: list[str], expected: str, tmp_path: Path) -> None:
    result = isthmus_cli("launch", "preflight", "train.steps=1", *more, cwd=tmp_path)
    assert result.code == 2, result.err
    (line,) = result.err.splitlines()
    assert line.startswith("isthmus: ")
    assert expected in line
    assert not list(tmp_path.iterdir())


def test_help_names_the_keys_and_exit_codes() -> None:
    result = isthmus_cli("launch", "preflight", "--help")
    assert result.code == 0
    for word in ("preflight.link_mbps", "90 something failed", "sites.store"):
        assert word in result.out
