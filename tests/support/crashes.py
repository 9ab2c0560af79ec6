"""Every place where a save of two ranks can end, by a kill or by a loss of power, and what a restart makes of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from typing_extensions import Buffer

from isthmus.fault_tolerance.filesystem import FileSystem, Hook
from isthmus.fault_tolerance.manifest import Broken, check_hashes, read_manifest
from isthmus.fault_tolerance.reader import Reader
from isthmus.fault_tolerance.records import MANIFEST, Record, rank_file
from isthmus.fault_tolerance.store import Store
from support.checkpoints import numbers_of, save, snapshot_of
from support.crash_ranks import NEW_STEP, OLD_STEP, RANKS, conclude, write


@dataclass(frozen=True)
class Operation:
    """One change of the disk, with paths relative to the root."""

    rank: int
    name: str  # mkdir, open, write, fsync, rename, unlink, rmdir, ack
    path: Path
    target: Path | None = None
    data: bytes = b""

    def __str__(self) -> str:
        arrow = f" -> {self.target.name}" if self.target else ""
        return f"rank {self.rank} {self.name} {self.path.name}{arrow}"


class Recorder(Hook):
    """Writes down every operation of one rank."""

    def __init__(self, root: Path, rank: int, log: list[Operation]) -> None:
        self._root, self._rank, self._log = root, rank, log

    def after(self, operation: str, path: Path, data: Buffer | None = None, target: Path | None = None) -> None:
        moved = target.relative_to(self._root) if target else None
        content = bytes(data) if data is not None else b""
        self._log.append(Operation(self._rank, operation, path.relative_to(self._root), moved, content))


@dataclass(frozen=True)
class Prepared:
    """A folder with one acknowledged checkpoint, and what the ranks are about to write beside it."""

    root: Path
    contents: Path

    @classmethod
    def make(cls, folder: Path) -> "Prepared":
        prepared = cls(folder / "root", folder / "contents")
        for path in (prepared.root, prepared.contents):
            path.mkdir()
        store = Store(prepared.root / "checkpoints")
        store.prepare()
        save(store, OLD_STEP)
        for rank in range(RANKS):
            snapshot = snapshot_of(NEW_STEP, rank)
            (prepared.contents / rank_file(rank)).write_bytes(snapshot.view())
            snapshot.close()
        return prepared

    def copy_to(self, root: Path) -> "Prepared":
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return Prepared(root, self.contents)


def record(prepared: Prepared) -> list[Operation]:
    """Run the save once without harm; rank 1 first."""
    log: list[Operation] = []
    fs = [FileSystem(Recorder(prepared.root, rank, log)) for rank in range(RANKS)]
    for rank in reversed(range(RANKS)):
        write(prepared.root, prepared.contents, rank, fs[rank])
    conclude(prepared.root, fs[0], lambda: log.append(Operation(0, "ack", Path())))
    return log


def recover(root: Path, acknowledged: int) -> int:
    """Do what a restart does, then save on; return the step that was resumed.

    Raises:
        AssertionError: it resumed an older step than was acknowledged, a mixed one or none; or a manifest stood under
            its name without being whole.
    """
    store = Store(root / "checkpoints")
    for path in store.folder.glob(f"step-*/{MANIFEST}"):
        try:
            check_hashes(path.parent, read_manifest(path.parent), range(RANKS))
        except Broken as error:
            raise AssertionError(f"a manifest of a checkpoint that is not whole: {error}") from None
    for entry in store.scan():
        if entry.manifest is None:
            store.quarantine(entry.folder)
    whole = store.scan()
    assert whole, "nothing to resume from"
    newest = whole[0]
    assert newest.step >= acknowledged, f"resumed step {newest.step}, {acknowledged} was acknowledged"
    assert newest.manifest is not None
    reader = Reader(newest.folder, newest.manifest)
    for rank in range(RANKS):
        numbers = torch.zeros(6)
        wanted = Record("parameter", "weight", (12,), (0,), (12,), 6 * rank, 6 * rank + 6)
        reader.fill([(wanted, numbers)], near=rank)
        assert torch.equal(numbers, numbers_of(newest.step, rank)), "numbers of another step"
        assert reader.state(rank)["progress"] == {"step": newest.step}
    save(store, NEW_STEP + 10, store.next_attempt(), keep=1)
    left = sorted(path.name.split("-")[0] for path in store.folder.iterdir())
    assert left in (["step"], ["quarantined", "step"]), left
    return newest.step


def kill_points(log: list[Operation]) -> list[tuple[int, int, str]]:
    """Return every (rank, number of its operation, before | within | after)."""
    points = []
    for rank in range(RANKS):
        own = [operation for operation in log if operation.rank == rank and operation.name != "ack"]
        for number, operation in enumerate(own):
            places = ("before", "within", "after") if operation.name == "write" else ("before", "after")
            points += [(rank, number, when) for when in places]
    return points


def kill_everywhere(prepared: Prepared, points: list[tuple[int, int, str]], scratch: Path) -> list[int]:
    """Save with real processes, one of which is killed at each point; return the steps that the restarts resumed."""
    server = subprocess.Popen(
        [sys.executable, "-m", "support.crash_ranks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert server.stdin
    assert server.stdout
    resumed = []
    for number, (victim, operation, when) in enumerate(points):
        run = prepared.copy_to(scratch / f"{number}")
        request = {"root": str(run.root), "contents": str(run.contents), "victim": victim, "number": operation}
        server.stdin.write(json.dumps({**request, "when": when}) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        assert answer["killed"], f"rank {victim} has no operation {operation}"
        resumed.append(recover(run.root, NEW_STEP if answer["acknowledged"] else OLD_STEP))
    server.stdin.close()
    server.wait()
    return resumed


def interrupted_pairs(log: list[Operation]) -> Iterator[list[Operation]]:
    """Yield what has happened when both ranks die at one moment: every combination of their progress."""
    ranks = [[operation for operation in log if operation.rank == rank] for rank in range(RANKS)]
    votes = next(n for n, operation in enumerate(ranks[0]) if operation.name == "rename") + 1
    for ahead in range(len(ranks[1]) + 1):
        for other in range(votes + 1):
            yield [*ranks[1][:ahead], *ranks[0][:other]]
    for other in range(votes + 1, len(ranks[0]) + 1):
        yield [*ranks[1], *ranks[0][:other]]
