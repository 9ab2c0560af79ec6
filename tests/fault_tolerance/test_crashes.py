"""A save that ends anywhere: killed at every operation of every rank, or without power; and a test of this test."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.crash_ranks import NEW_STEP, OLD_STEP, write
from support.crashes import (
    Operation,
    Prepared,
    interrupted_pairs,
    kill_everywhere,
    kill_points,
    record,
    recover,
)
from support.power import Disk, Restarts, cut_power_everywhere, exchanged, without

from isthmus.fault_tolerance.filesystem import FileSystem


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory where that can be: thousands of small files are written and synced."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("crashes")
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="isthmus-crashes-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def restarts(scratch: Path) -> Restarts:
    return Restarts(scratch)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared.make(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def log(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[Operation]:
    return record(prepared.copy_to(tmp_path_factory.mktemp("recorded")))


def test_the_log_holds_every_kind_of_operation(log: list[Operation]) -> None:
    kinds = {"mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir", "ack"}
    assert {operation.name for operation in log} == kinds
    assert {operation.rank for operation in log} == {0, 1}


def test_killed_at_every_operation_of_every_rank(prepared: Prepared, log: list[Operation], scratch: Path) -> None:
    points = kill_points(log)
    resumed = kill_everywhere(prepared, points, scratch)
    print(f"{len(points)} points")
    assert len(resumed) == len(points) >= 50
    assert set(resumed) == {OLD_STEP, NEW_STEP}


def test_both_ranks_die_at_one_moment(prepared: Prepared, log: list[Operation], restarts: Restarts) -> None:
    problems = []
    for happened in interrupted_pairs(log):
        disk = Disk(prepared.root)
        for operation in happened:
            disk.apply(operation)
        ((_, everything),) = [(name, keep) for name, keep in disk.losses() if name == "everything"]
        problems.append(restarts.try_from(disk.survives(everything), disk.acknowledged))
    print(f"{len(problems)} pairs")
    assert not any(problems), problems
    assert len(problems) > 80


def test_power_is_cut_anywhere(prepared: Prepared, log: list[Operation], restarts: Restarts) -> None:
    cases, wrong = cut_power_everywhere(prepared.root, log, restarts)
    print(f"{cases} cases")
    assert not wrong, wrong[:5]
    assert cases > 150


@pytest.mark.slow
def test_every_fsync_is_needed(prepared: Prepared, log: list[Operation], restarts: Restarts) -> None:
    syncs = [number for number, operation in enumerate(log) if operation.name == "fsync"]
    assert len(syncs) >= 8
    needless = []
    for number in syncs:
        _, wrong = cut_power_everywhere(prepared.root, without(log, number), restarts, first_only=True)
        if not wrong:
            needless.append(str(log[number]))
    assert needless == []


# Neighbours whose order is free.
FREE = {
    # What is done before a vote's rename, or before the manifest's, may come in any order.
    ("fsync rank-00000.safetensors", "open rank-00000.json.new"),
    ("fsync rank-00001.safetensors", "open rank-00001.json.new"),
    ("rename rank-00000.json.new -> rank-00000.json", "fsync checkpoints"),
    ("fsync checkpoints", "fsync step-0000000020-a0002"),
    ("fsync step-0000000020-a0002", "open manifest.json.new"),
    # The other rank has made the folder already.
    ("mkdir step-0000000020-a0002", "open rank-00000.safetensors"),
    # What is acknowledged is durable, and a newer one is: what becomes of the old one is all the same.
    ("ack", "rename step-0000000010-a0001 -> retired-step-0000000010-a0001"),
    ("fsync checkpoints", "unlink manifest.json"),
}


@pytest.mark.slow
def test_the_order_of_neighbours_matters(prepared: Prepared, log: list[Operation], restarts: Restarts) -> None:
    free = set()
    for first in range(len(log) - 1):
        if log[first].rank == log[first + 1].rank:
            _, wrong = cut_power_everywhere(prepared.root, exchanged(log, first, first + 1), restarts, first_only=True)
            if not wrong:
                pair = tuple(str(log[number]).split(" ", 2)[2].strip() for number in (first, first + 1))
                if not all(word.startswith("unlink") for word in pair):  # of a folder that has lost its name already
                    free.add(pair)
    assert free <= FREE, free - FREE


def test_a_crash_while_quarantining_is_followed_by_another_try(prepared: Prepared, tmp_path: Path) -> None:
    run = prepared.copy_to(tmp_path)
    write(run.root, run.contents, 1, FileSystem())
    (folder,) = tmp_path.glob("checkpoints/step-0000000020-*")
    folder.rename(folder.with_name("quarantined-" + folder.name))
    assert recover(tmp_path, OLD_STEP) == OLD_STEP
