"""Small checkpoints of plain tensors, saved by as many ranks as asked for, without processes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.fault_tolerance.commit import commit, retire, write_part
from isthmus.fault_tolerance.filesystem import FileSystem
from isthmus.fault_tolerance.records import Record
from isthmus.fault_tolerance.snapshot import Snapshot
from isthmus.fault_tolerance.store import Store, expendable
from support.crash_ranks import manifest_of


def numbers_of(step: int, rank: int, count: int = 6) -> Tensor:
    return torch.arange(count, dtype=torch.float32) + 10 * rank + 1000 * step


def snapshot_of(step: int, rank: int, ranks: int = 2) -> Snapshot:
    snapshot = Snapshot()
    record = Record("parameter", "weight", (6 * ranks,), (0,), (6 * ranks,), 6 * rank, 6 * rank + 6)
    snapshot.fill([(record, numbers_of(step, rank))], {"progress": {"step": step}, "noise": torch.arange(3)})
    return snapshot


def write_ranks(store: Store, step: int, attempt: int, ranks: int = 2, only: list[int] | None = None) -> None:
    for rank in range(ranks) if only is None else only:
        snapshot = snapshot_of(step, rank, ranks)
        write_part(store.fs, store.path(step, attempt), rank, snapshot.view())
        snapshot.close()


def save(store: Store, step: int, attempt: int = 1, ranks: int = 2, *, keep: int = 100, **fields: Any) -> Path:
    """Save as a run does: rank 0 last, then commit, then retention."""
    write_ranks(store, step, attempt, ranks, only=list(range(ranks))[::-1])
    folder = store.path(step, attempt)
    commit(store.fs, folder, manifest_of(step, attempt, ranks, **fields), deadline_seconds=5, alive=lambda: True)
    going = expendable(store.scan(), keep=keep, keep_every=0, durable_everywhere=step)
    retire(store.fs, [*store.leftovers(), *going])
    return folder


def new_store(root: Path, fs: FileSystem | None = None) -> Store:
    store = Store(root / "checkpoints", fs)
    store.prepare()
    return store
