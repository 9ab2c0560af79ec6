"""The folder of a run's checkpoints: what is in it, what is whole, what may go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isthmus.fault_tolerance.commit import RETIRED, retire
from isthmus.fault_tolerance.filesystem import FileSystem
from isthmus.fault_tolerance.manifest import Broken, Manifest, check_sizes, read_manifest
from isthmus.fault_tolerance.records import MANIFEST, any_attempt, folder_name, parse_folder_name

QUARANTINED = "quarantined-"  # broken, kept for whoever wants to know why
ABANDONED = "abandoned-"  # whole, but the run went back behind it


@dataclass(frozen=True)
class Found:
    """A checkpoint's folder; without a manifest it is broken, and `broken` says why."""

    folder: Path
    step: int
    attempt: int
    manifest: Manifest | None
    broken: str = ""


class Store:
    """Looks after `checkpoints/` of one site. All changes are made by one process, rank 0 or its writer."""

    def __init__(self, folder: Path, fs: FileSystem | None = None) -> None:
        self.folder, self.fs = folder, fs or FileSystem()

    def prepare(self) -> None:
        """Make the folder and its name durable."""
        self.fs.make_folder(self.folder)
        self.fs.sync_folder(self.folder.parent)

    def path(self, step: int, attempt: int) -> Path:
        return self.folder / folder_name(step, attempt)

    def next_attempt(self) -> int:
        """Return a number that no folder has been named with, also not one that was set aside."""
        return 1 + max((any_attempt(path.name) for path in self._entries()), default=0)

    def scan(self) -> list[Found]:
        """Return all checkpoints, the newest first; files are looked up, not read."""
        found = []
        for path in self._entries():
            if (numbers := parse_folder_name(path.name)) is not None and path.is_dir():
                found.append(inspect(path, *numbers))
        return sorted(found, key=lambda entry: (entry.step, entry.attempt), reverse=True)

    def quarantine(self, folder: Path) -> Path:
        """Set a broken checkpoint aside; of those that were never finished, the newest alone is kept."""
        away = self._set_aside(folder, QUARANTINED)
        unfinished = [path for path in self._with_prefix(QUARANTINED) if not (path / MANIFEST).exists()]
        for path in sorted(unfinished, key=lambda path: any_attempt(path.name))[:-1]:
            retire(self.fs, [self._set_aside(path, RETIRED)])
        return away

    def lost(self) -> list[Path]:
        """Return what was complete once and was set aside, because it is damaged or another site's is."""
        return [path for path in self._with_prefix(QUARANTINED) if (path / MANIFEST).exists()]

    def abandon_lost(self) -> None:
        """Give them up, because the run begins anew."""
        for path in self.lost():
            self._set_aside(path, ABANDONED)

    def abandon(self, found: Sequence[Found]) -> None:
        """Set checkpoints aside that the run is about to go back behind; they go with the next that is retired."""
        for entry in found:
            self._set_aside(entry.folder, ABANDONED)

    def leftovers(self) -> list[Path]:
        """Return what a crash in the middle of deleting has left, and what was abandoned."""
        return [*self._with_prefix(RETIRED), *self._with_prefix(ABANDONED)]

    def _set_aside(self, folder: Path, prefix: str) -> Path:
        away = folder.with_name(prefix + folder.name)
        self.fs.rename(folder, away)
        self.fs.sync_folder(self.folder)
        return away

    def _with_prefix(self, prefix: str) -> list[Path]:
        return [path for path in self._entries() if path.name.startswith(prefix)]

    def _entries(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []


def inspect(folder: Path, step: int, attempt: int) -> Found:
    """Look at one checkpoint: its manifest is read, its files are looked up."""
    try:
        manifest = read_manifest(folder)
        if manifest.step != step:
            raise Broken(f"its manifest is of step {manifest.step}")
        check_sizes(folder, manifest)
    except Broken as error:
        return Found(folder, step, attempt, None, str(error))
    return Found(folder, step, attempt, manifest)


def expendable(found: Sequence[Found], *, keep: int, keep_every: int, durable_everywhere: int) -> list[Path]:
    """Return the checkpoints that may be deleted, the oldest first.

    Args:
        found: all of them, the newest first.
        keep: how many of the newest stay.
        keep_every: steps that are a multiple of it stay too; 0 for none.
        durable_everywhere: a step that every site holds; older ones alone may go.
    """
    whole = [entry for entry in found if entry.manifest is not None]
    going = [
        entry.folder
        for entry in whole[keep:]
        if entry.step < durable_everywhere and not (keep_every and entry.step % keep_every == 0)
    ]
    return going[::-1]
