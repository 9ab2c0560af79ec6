"""Every operation by which a checkpoint changes the disk, one method each.

Whoever wants to watch, delay or break them passes a hook: tests record and kill, `chaos.*` rehearses.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Buffer


class Hook:
    """Told before and after each operation; may raise, sleep or end the process."""

    def before(self, operation: str, path: Path, data: Buffer | None = None, target: Path | None = None) -> None:
        """`data` is what is written, `target` the new name of a rename."""

    def after(self, operation: str, path: Path, data: Buffer | None = None, target: Path | None = None) -> None:
        """The operation has happened."""

    def reach(self, point: str) -> None:
        """A named point inside a save: part written, part durable, manifest written, committed, retiring."""


@dataclass(frozen=True)
class OpenFile:
    """A file that is being written."""

    path: Path
    descriptor: int


class FileSystem:
    """The real one."""

    def __init__(self, hook: Hook | None = None) -> None:
        self._hook = hook or Hook()

    def reach(self, point: str) -> None:
        self._hook.reach(point)

    def make_folder(self, path: Path) -> None:
        """Make a folder; several ranks may make the same one."""
        with self._operation("mkdir", path):
            path.mkdir(exist_ok=True)

    def create(self, path: Path) -> OpenFile:
        """Open a new file for writing.

        Raises:
            FileExistsError: there is one of this name.
        """
        with self._operation("open", path):
            return OpenFile(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

    def write(self, file: OpenFile, data: Buffer) -> None:
        with self._operation("write", file.path, data):
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(file.descriptor, view) :]

    def sync(self, file: OpenFile) -> None:
        with self._operation("fsync", file.path):
            os.fsync(file.descriptor)

    def close(self, file: OpenFile) -> None:
        os.close(file.descriptor)

    def rename(self, path: Path, target: Path) -> None:
        with self._operation("rename", path, target=target):
            os.rename(path, target)

    def remove(self, path: Path) -> None:
        with self._operation("unlink", path):
            os.unlink(path)

    def remove_folder(self, path: Path) -> None:
        with self._operation("rmdir", path):
            os.rmdir(path)

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        with self._operation("fsync", path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def _operation(
        self, operation: str, path: Path, data: Buffer | None = None, target: Path | None = None
    ) -> Iterator[None]:
        self._hook.before(operation, path, data, target)
        yield
        self._hook.after(operation, path, data, target)


def free_bytes(path: Path) -> int:
    """Return what an ordinary user may still write to the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
