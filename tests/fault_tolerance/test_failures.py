"""How others' checkpoints break, and what happens to ours."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.checkpoints import new_store, save, snapshot_of, write_ranks
from support.crash_ranks import manifest_of

from isthmus.errors import UserError
from isthmus.fault_tolerance.commit import commit
from isthmus.fault_tolerance.filesystem import FileSystem, Hook, free_bytes
from isthmus.fault_tolerance.snapshot import Snapshot
from isthmus.fault_tolerance.writer import Request, WriteError, WriterProcess, serve
from isthmus.train.resume_rules import FORBIDDEN, FREE, compare_config
from isthmus.train.resuming import at_path


def request_for(snapshot: Snapshot, folder: Path, rank: int = 0, ranks: int = 1, deadline: float = 20) -> Request:
    from dataclasses import asdict

    return Request(
        folder=str(folder),
        rank=rank,
        length=snapshot.bytes,
        deadline_seconds=deadline,
        manifest=asdict(manifest_of(7, 1, ranks)) if rank == 0 else None,
        keep=2,
        keep_every=0,
        durable_everywhere=7,
    )


def test_the_writer_process_commits_and_is_told_the_next_save(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    snapshot = snapshot_of(7, 0, 1)
    writer = WriterProcess(snapshot.descriptor)
    writer.start(request_for(snapshot, store.path(7, 1)))
    assert writer.finished(wait=True)
    assert not writer.finished(wait=False)  # once
    (found,) = store.scan()
    assert found.manifest is not None
    writer.start(request_for(snapshot, store.path(7, 2)))
    assert writer.finished(wait=True)
    writer.close()


def test_a_writer_that_dies_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    snapshot = snapshot_of(7, 0, 2)
    writer = WriterProcess(snapshot.descriptor)
    writer.start(request_for(snapshot, store.path(7, 1), ranks=2))  # waits for a rank 1 that never votes
    while not (store.path(7, 1) / "rank-00000.json").exists():
        assert not writer.finished(wait=False)
        time.sleep(0.01)
    os.kill(writer._process.pid, signal.SIGKILL)
    with pytest.raises(WriteError, match="has died"):
        writer.finished(wait=True)
    writer.close()
    assert store.scan()[0].manifest is None


def test_a_rank_that_never_votes_ends_the_save_by_its_deadline(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    snapshot = snapshot_of(7, 0, 2)
    with pytest.raises(WriteError, match=r"rank 1 has not written its part of step-0000000007-a0001 within 0\.2 s"):
        serve(request_for(snapshot, store.path(7, 1), ranks=2, deadline=0.2), snapshot.view(), FileSystem())


def test_a_full_disk_is_named_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    class Full(Hook):
        def before(self, operation: str, *_: object) -> None:
            if operation == "write":
                raise OSError(28, "No space left on device")

    store = new_store(tmp_path)
    save(store, 6, ranks=1)
    snapshot = snapshot_of(7, 0, 1)
    with pytest.raises(WriteError, match="the disk is full"):
        serve(request_for(snapshot, store.path(7, 1)), snapshot.view(), FileSystem(Full()))
    newest, older = store.scan()
    assert (newest.manifest, older.step) == (None, 6)
    assert older.manifest is not None
    assert free_bytes(tmp_path) > 0


def test_a_writer_ends_with_the_rank_that_started_it(tmp_path: Path) -> None:
    # An orphan could commit a step of an attempt that has ended.
    code = (
        "import sys, time, os; from isthmus.fault_tolerance.writer import WriterProcess;"
        "fd = os.memfd_create('x'); w = WriterProcess(fd); print(w._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    time.sleep(1.0)  # it asks the kernel as its first act
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, "the writer outlived its rank"
        time.sleep(0.05)


def test_the_writer_needs_no_torch() -> None:
    code = "import sys, isthmus.fault_tolerance.writer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_save_into_an_existing_folder_is_refused_before_it_changes_anything(tmp_path: Path) -> None:
    # torch's DCP writes new data under old metadata there, and loads the mixture.
    store = new_store(tmp_path)
    folder = save(store, 6)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError):
        write_ranks(store, 6, 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_old_checkpoint_stays_until_the_new_one_is_durable(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    save(store, 6)
    write_ranks(store, 7, 1, only=[1])
    with pytest.raises(TimeoutError):
        commit(store.fs, store.path(7, 1), manifest_of(7, 1), deadline_seconds=0.1, alive=lambda: True)
    assert [entry.step for entry in store.scan() if entry.manifest is not None] == [6]


def test_there_is_no_pointer_that_could_tear(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    save(store, 6)
    assert [path.name for path in store.folder.iterdir()] == ["step-0000000006-a0001"]


def test_a_path_may_be_a_checkpoint_a_site_or_a_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "main").mkdir(parents=True)
    store = new_store(tmp_path / "run" / "main")
    folder = save(store, 6)
    for path in (folder, store.folder, store.folder.parent, tmp_path / "run"):
        assert at_path(path).folder == folder
    (folder / "manifest.json").write_text("{}")
    for path, why in ((folder, "is broken"), (tmp_path, "holds no checkpoint"), (tmp_path / "absent", "no checkpoint")):
        with pytest.raises(UserError, match=why):
            at_path(path)


def test_a_manifest_is_plain_json(tmp_path: Path) -> None:
    folder = save(new_store(tmp_path), 6)
    assert json.loads((folder / "manifest.json").read_text())["step"] == 6


def test_configuration_keys_are_forbidden_bending_or_free() -> None:
    before = {
        "model.num_layers": 4,
        "model.name": "a",
        "optim.learning_rate": 1.0,
        "data.cache_dir": "x",
        "train.seed": 1,
    }
    assert compare_config(before, dict(before)) == []
    assert compare_config(before, before | {"model.name": "b", "data.cache_dir": "y", "parallel.tensor": 2}) == []
    assert compare_config(before, before | {"optim.learning_rate": 2.0}) == ["optim.learning_rate"]
    assert compare_config(before, before | {"data.sources.web.weight": 3}) == ["data.sources.web.weight"]
    assert compare_config(before | {"data.benchmarks": ["b"]}, before) == ["data.benchmarks"]
    for name, value in (("model.num_layers", 5), ("train.seed", 2), ("data.packing", "best_fit")):
        with pytest.raises(UserError, match=name):
            compare_config(before, before | {name: value})


def test_the_guide_has_the_table_that_the_code_goes_by() -> None:
    guide = (Path(__file__).parents[2] / "docs/fault_tolerance.md").read_text()
    table = guide[guide.index("### What may change on resume") :]
    refused, free = table.split("\n| ")[2:4]
    for name in FORBIDDEN:
        assert f"`{name}" in refused
    for name in FREE:
        assert f"`{name}`" in free
