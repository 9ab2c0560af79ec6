"""Faults that are rehearsed strike where they are told to, once, and are refused where they would mean nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import new_store, save, snapshot_of
from support.crash_ranks import manifest_of

from isthmus.errors import UserError
from isthmus.fault_tolerance.chaos import Chaos, ChaosConfig, FaultConfig, FaultKind, validate_chaos
from isthmus.fault_tolerance.chaos_files import Marker
from isthmus.fault_tolerance.manifest import Broken, check_hashes
from isthmus.fault_tolerance.writer import Request, WriteError, WriterProcess, file_system_for, serve


def fault(kind: FaultKind | None, **fields: Any) -> FaultConfig:
    return FaultConfig(kind=kind, **fields)


def chaos_of(folder: Path, *faults: FaultConfig, rank: int = 0, site: str = "main", **fields: Any) -> Chaos:
    return Chaos(ChaosConfig(faults=list(faults)), folder, rank=rank, site=site, **fields)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (fault(None, step=1), r"faults\[0\]\.kind"),
        (fault(FaultKind.kill, step=3, rank=2), r"faults\[0\]\.rank: is 2 of 2"),
        (fault(FaultKind.kill, step=11), r"step: is 11 of 10"),
        (fault(FaultKind.kill), r"step: is not given"),
        (fault(FaultKind.kill, step=1, site="west"), "no site 'west'"),
        (fault(FaultKind.kill, step=1, point="lunch"), "no point 'lunch'"),
        (fault(FaultKind.kill, step=1, seconds=3), r"seconds: would do nothing"),
        (fault(FaultKind.kill, rank=1, point="committed"), "only rank 0 comes to 'committed'"),
        (fault(FaultKind.kill, step=1, holding_lock=True), r"holding_lock: would do nothing"),
        (fault(FaultKind.stall, step=1), r"seconds: is None"),
        (fault(FaultKind.stall, step=1, seconds=-1), r"seconds: is -1"),
        (fault(FaultKind.stall, step=1, seconds=float("inf")), r"seconds: is inf"),
        (fault(FaultKind.flip_bit, point="committed"), r"point: would do nothing"),
        (fault(FaultKind.fill_disk, factor=2), r"factor: would do nothing"),
        (fault(FaultKind.corrupt_gradient, step=1, factor=1), "change nothing"),
        (fault(FaultKind.kill, step=1, times=-1), "times: is -1"),
    ],
)
def test_faults_that_mean_nothing_are_refused_by_name(wrong: FaultConfig, named: str) -> None:
    with pytest.raises(UserError, match=named):
        validate_chaos(ChaosConfig(faults=[wrong]), ranks=2, steps=10, sites=["main"])


def test_rehearsing_and_watching_make_no_other_run_and_are_checked_before_it_starts() -> None:
    from isthmus.config import compose
    from isthmus.train.config import Config, run_name
    from isthmus.train.validate import plan_run

    words = ["train.steps=10"]
    plain = compose(Config, "train", words)
    rehearsal = compose(Config, "train", [*words, "chaos.faults=[{kind:kill,rank:1,step:5}]", "watchdog.factor=5"])
    assert rehearsal.chaos.faults == [fault(FaultKind.kill, rank=1, step=5)]
    assert run_name(rehearsal) == run_name(plain)
    plan_run(rehearsal, 2)
    with pytest.raises(UserError, match=r"chaos\.faults\[0\]\.rank: is 1 of 1"):
        plan_run(rehearsal, 1)
    with pytest.raises(UserError, match=r"train\.timeout_seconds: is 600, watchdog\.floor_seconds 60"):
        plan_run(compose(Config, "train", [*words, "watchdog.floor_seconds=60"]), 1)


def test_a_collective_is_late_only_where_somebody_waits() -> None:
    late = ChaosConfig(faults=[fault(FaultKind.delay_collective, step=1, seconds=2)])
    validate_chaos(late, ranks=2, steps=10, sites=["main"])
    with pytest.raises(UserError, match="no other rank that would wait"):
        validate_chaos(late, ranks=1, steps=10, sites=["main"])


def test_a_fault_strikes_its_rank_and_site_at_its_step_and_place_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    stall = fault(FaultKind.stall, rank=1, site="west", step=3, point="data", seconds=7)
    for rank, site in ((0, "west"), (1, "east")):
        chaos_of(tmp_path, stall, rank=rank, site=site).enter("data", 3)
    struck = chaos_of(tmp_path, stall, rank=1, site="west")
    for phase, step in (("data", 2), ("compute", 3)):
        struck.enter(phase, step)
    assert slept == []
    assert struck.describe() == ["chaos: stall on rank 1 at step 3 in data for 7 s (once)"]
    struck.enter("data", 3)
    restarted = chaos_of(tmp_path, stall, rank=1, site="west")
    restarted.enter("data", 3)
    assert restarted.describe() == []
    assert slept == [7]
    always = dataclasses.replace(stall, times=0)
    for _ in range(3):
        chaos_of(tmp_path, always, rank=1, site="west").enter("data", 3)
    assert slept == [7] * 4


def test_the_marker_is_there_before_the_fault_strikes(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from isthmus.fault_tolerance.chaos import *;"
        "kill = FaultConfig(kind=FaultKind.kill, step=3);"
        f"chaos = Chaos(ChaosConfig(faults=[kill]), Path({str(tmp_path)!r}), rank=0, site='main');"
        "chaos.enter('compute', 3); print('alive')"
    )
    first, second = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2))
    assert first.returncode == -signal.SIGKILL
    assert (second.returncode, second.stdout) == (0, "alive\n")


def test_a_gradient_is_corrupted_for_its_step_on_all_copies(tmp_path: Path) -> None:
    import torch

    corrupt = fault(FaultKind.corrupt_gradient, rank=2, step=2, factor=100.0)
    gradients = []
    for rank in (0, 2, 3):
        weight = torch.ones(3, requires_grad=True)
        chaos = chaos_of(tmp_path, corrupt, rank=rank, copies=lambda rank: [2, 3])
        chaos.attach([torch.ones(2, 2, requires_grad=True), weight])
        for step in (1, 2, 3):
            chaos.enter("data", step)
            chaos.enter("compute", step)
            weight.grad = None
            weight.sum().backward()
            assert weight.grad is not None
            gradients.append(float(weight.grad[0]))
    assert gradients == [1, 1, 1, 1, 100, 1, 1, 100, 1]


def test_a_collective_is_delayed_where_another_rank_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    happened: list[Any] = []
    monkeypatch.setattr("time.sleep", happened.append)
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda tensor, op=None, group=None, async_op=False: happened.append(group)
    )
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: len(group))
    chaos = chaos_of(tmp_path, fault(FaultKind.delay_collective, step=2, seconds=5.0))
    for step in (1, 2, 3):
        chaos.enter("compute", step)
        for group in ("a", "ab"):
            torch.distributed.all_reduce(torch.zeros(1), group=group)  # type: ignore[arg-type]
    assert happened == ["a", "ab", "a", 5.0, "ab", "a", "ab"]


def request_for(folder: Path, faults: list[dict[str, Any]], length: int, process: int = 0) -> Request:
    return Request(
        folder=str(folder),
        rank=0,
        length=length,
        deadline_seconds=20,
        manifest=dataclasses.asdict(manifest_of(7, 1, 1)),
        keep=2,
        keep_every=0,
        durable_everywhere=7,
        process=process,
        faults=faults,
    )


def test_a_full_disk_is_rehearsed_once_and_only_from_its_step_on(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    save(store, 6, ranks=1)
    snapshot = snapshot_of(7, 0, 1)
    for step, fails in ((8, False), (7, True), (7, False)):
        faults = chaos_of(tmp_path, fault(FaultKind.fill_disk, step=step)).of_saves()
        request = request_for(store.path(7, 1), faults, snapshot.bytes)
        if fails:
            with pytest.raises(WriteError, match="the disk is full"):
                serve(request, snapshot.view(), file_system_for(request))
        else:
            serve(request, snapshot.view(), file_system_for(request))
        newest = store.scan()[0]
        assert (newest.manifest is None) == fails
        for path in newest.folder.iterdir():
            path.unlink()


def test_a_flipped_bit_is_committed_and_found_when_it_is_read(tmp_path: Path) -> None:
    # torch's DCP loads it: 1.0 becomes inf in silence.
    store = new_store(tmp_path)
    snapshot = snapshot_of(7, 0, 1)
    faults = chaos_of(tmp_path, fault(FaultKind.flip_bit)).of_saves()
    request = request_for(store.path(7, 1), faults, snapshot.bytes)
    serve(request, snapshot.view(), file_system_for(request))
    (found,) = store.scan()
    assert found.manifest is not None
    with pytest.raises(Broken, match=r"rank-00000\.safetensors is damaged"):
        check_hashes(found.folder, found.manifest, [0])


def test_a_kill_within_a_save_takes_the_rank_with_it(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    snapshot = snapshot_of(7, 0, 1)
    faults = chaos_of(tmp_path, fault(FaultKind.kill, point="part_durable")).of_saves()
    rank = subprocess.Popen(["sleep", "600"])
    writer = WriterProcess(snapshot.descriptor)
    writer.start(request_for(store.path(7, 1), faults, snapshot.bytes, process=rank.pid))
    assert rank.wait(60) == -signal.SIGKILL
    with pytest.raises(WriteError, match="has died"):
        writer.finished(wait=True)
    writer.close()
    assert store.scan()[0].manifest is None


def test_requests_to_stop_do_not_reach_the_process_that_writes(tmp_path: Path) -> None:
    # Slurm sends them to every process of a step, a terminal's Ctrl-C to all of its group; the last save is to come.
    store = new_store(tmp_path)
    snapshot = snapshot_of(7, 0, 1)
    writer = WriterProcess(snapshot.descriptor)
    writer.start(request_for(store.path(7, 1), [], snapshot.bytes))
    assert writer.finished(wait=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        os.kill(writer._process.pid, number)
    writer.start(request_for(store.path(7, 2), [], snapshot.bytes))
    assert writer.finished(wait=True)
    writer.close()


def test_a_marker_that_was_not_written_whole_counts_as_none(tmp_path: Path) -> None:
    marker = Marker(tmp_path / "m.json")
    marker.path.write_text("{")
    assert marker.take(1)
    assert json.loads(marker.path.read_text()) == {"struck": 1}
    assert not marker.take(1)
    assert marker.take(2)
