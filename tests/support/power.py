"""A disk that forgets what was not synced: replays recorded operations and shows what may be left after a power cut.

What POSIX promises: the data of a file is durable after fsync of the file, its name after fsync of the folder; changes
of names are each all or nothing, and those that were not synced may survive in any selection.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.crash_ranks import NEW_STEP, OLD_STEP
from support.crashes import Operation, recover


@dataclass
class _File:
    content: bytes = b""
    durable: bytes = b""


@dataclass
class _Folder:
    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    durable: dict[str, "_File | _Folder"] = field(default_factory=dict)
    pending: list[Callable[[dict[str, "_File | _Folder"]], None]] = field(default_factory=list)

    def change(self, how: Callable[[dict[str, "_File | _Folder"]], None]) -> None:
        how(self.names)
        self.pending.append(how)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.names), []


class Impossible(Exception):
    """The operations cannot happen in this order at all."""


class Disk:
    """Starts with a folder's content, all of it durable."""

    def __init__(self, root: Path) -> None:
        self.root = self._load(root)
        self.acknowledged = OLD_STEP

    def apply(self, operation: Operation) -> None:
        """Let one operation happen, in memory.

        Raises:
            Impossible: the file or folder that it needs is not there.
        """
        if operation.name == "ack":
            self.acknowledged = NEW_STEP
            return
        parent, name = self._find(operation.path.parent), operation.path.name
        if not isinstance(parent, _Folder):
            raise Impossible(str(operation))
        entry = parent.names.get(name)
        if operation.name == "mkdir":
            if entry is None:
                folder = _Folder()
                parent.change(lambda names: names.__setitem__(name, folder))
        elif operation.name == "open":
            file = _File()
            parent.change(lambda names: names.__setitem__(name, file))
        elif entry is None:
            raise Impossible(str(operation))
        elif operation.name == "write":
            assert isinstance(entry, _File)
            entry.content += operation.data
        elif operation.name == "fsync":
            if isinstance(entry, _File):
                entry.durable = entry.content
            else:
                entry.sync()
        elif operation.name == "rename":
            assert operation.target is not None
            target = operation.target.name

            def rename(names: dict[str, "_File | _Folder"]) -> None:
                names.pop(name, None)
                names[target] = entry

            parent.change(rename)
        elif operation.name in ("unlink", "rmdir"):
            if isinstance(entry, _Folder) and entry.names:
                raise Impossible(str(operation))
            parent.change(lambda names: names.pop(name, None) and None)
        else:
            raise AssertionError(operation.name)

    def losses(self) -> Iterator[tuple[str, "_Keep"]]:
        """Yield the ways in which a power cut may end now: which pending changes of names and data survive."""
        changes = [(id(folder), number) for folder in self._folders() for number in range(len(folder.pending))]
        yield "nothing unsynced", _Keep(set(), data=False)
        yield "all names, no unsynced data", _Keep(set(changes), data=False)
        yield "everything", _Keep(set(changes), data=True)
        for change in changes:
            yield "one name, no data", _Keep({change}, data=False)
            yield "one name and the data", _Keep({change}, data=True)
            yield "all names but one", _Keep(set(changes) - {change}, data=True)

    def survives(self, keep: "_Keep") -> "Survivors":
        """Return what a power cut leaves: the bytes of each file, None for a folder, parents first."""
        found: dict[Path, bytes | None] = {}
        self._collect(self.root, Path(), keep, found)
        return frozenset(found.items())

    def _collect(self, folder: _Folder, path: Path, keep: "_Keep", found: dict[Path, bytes | None]) -> None:
        found[path] = None
        names = dict(folder.durable)
        for number, change in enumerate(folder.pending):
            if (id(folder), number) in keep.changes:
                change(names)
        for name, entry in names.items():
            if isinstance(entry, _Folder):
                self._collect(entry, path / name, keep, found)
            else:
                found[path / name] = entry.content if keep.data else entry.durable

    def _find(self, path: Path) -> "_File | _Folder | None":
        at: _File | _Folder | None = self.root
        for part in path.parts:
            at = at.names.get(part) if isinstance(at, _Folder) else None
        return at

    def _folders(self) -> list[_Folder]:
        """Return every folder that stands under a name, on disk or in memory."""
        found: dict[int, _Folder] = {}

        def visit(folder: _Folder) -> None:
            if id(folder) not in found:
                found[id(folder)] = folder
                for entry in (*folder.names.values(), *folder.durable.values()):
                    if isinstance(entry, _Folder):
                        visit(entry)

        visit(self.root)
        return list(found.values())

    def _load(self, path: Path) -> _Folder:
        folder = _Folder()
        for child in path.iterdir():
            if child.is_dir():
                folder.names[child.name] = self._load(child)
            else:
                folder.names[child.name] = _File(child.read_bytes(), child.read_bytes())
        folder.sync()
        return folder


@dataclass(frozen=True)
class _Keep:
    changes: set[tuple[int, int]]
    data: bool


Survivors = frozenset[tuple[Path, bytes | None]]


class Restarts:
    """Restarts from what is left on a real disk; the same bytes are not tried twice.

    Most power cuts leave what another one leaves too, and so do protocols that differ in one operation.
    """

    def __init__(self, scratch: Path) -> None:
        self._root = scratch / "after"
        self._known: dict[tuple[Survivors, int], str] = {}

    def try_from(self, left: Survivors, acknowledged: int) -> str:
        """Return what goes wrong, or ""."""
        if (left, acknowledged) not in self._known:
            self._known[left, acknowledged] = self._try(left, acknowledged)
        return self._known[left, acknowledged]

    def _try(self, left: Survivors, acknowledged: int) -> str:
        shutil.rmtree(self._root, ignore_errors=True)
        for path, content in sorted(left, key=lambda entry: len(entry[0].parts)):
            if content is None:
                (self._root / path).mkdir()
            else:
                (self._root / path).write_bytes(content)
        try:
            recover(self._root, acknowledged)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""


def cut_power_everywhere(
    before: Path, log: list[Operation], restarts: Restarts, *, first_only: bool = False
) -> tuple[int, list[str]]:
    """Cut the power after every prefix of the log, in every way; return the number of cases and what went wrong.

    Args:
        before: the folder as it was when the log began.
        first_only: stop at the first thing that goes wrong.
    """
    disk, cases, wrong = Disk(before), 0, []
    for number in range(len(log) + 1):
        if number:
            try:
                disk.apply(log[number - 1])
            except Impossible as error:
                return cases, [*wrong, f"impossible: {error}"]
        for name, keep in disk.losses():
            cases += 1
            if problem := restarts.try_from(disk.survives(keep), disk.acknowledged):
                last = log[number - 1] if number else "the start"
                wrong.append(f"{name} after {last}: {problem}")
                if first_only:
                    return cases, wrong
    return cases, wrong


def without(log: list[Operation], number: int) -> list[Operation]:
    return log[:number] + log[number + 1 :]


def exchanged(log: list[Operation], first: int, second: int) -> list[Operation]:
    """Return the log with two operations of one rank in each other's place.

    The other rank goes on as early as it may: what a rank does behind its vote's rename happens after the commit.
    """
    changed = list(log)
    changed[first], changed[second] = changed[second], changed[first]
    votes = {
        operation.rank: number
        for number, operation in enumerate(changed)
        if operation.name == "rename" and operation.path.name.startswith("rank-")
    }
    late = [operation for number, operation in enumerate(changed) if operation.rank == 1 and number > votes[1]]
    early = [operation for operation in changed if not (operation.rank == 1 and operation in late)]
    return early + late
