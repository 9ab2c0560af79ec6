"""Every operation by which a checkpoint changes the disk, one method each.

Whoever wants to watch, delay or break them passes a hook: tests record and kill, `chaos.*` rehearses.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

    def create(self, path: Path, *, direct: bool = False) -> OpenFile:
        """Open a new file for writing.

        Args:
            direct: past the page cache where the file system can. The copy into the cache and the kernel's way back out
                of it cost as much processor time as hashing the same bytes, and training wants it.

        Raises:
            FileExistsError: there is one of this name.
        """
        with self._operation("open", path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            if direct:
                _set_direct(descriptor, True)
            return OpenFile(path, descriptor)

    def write(self, file: OpenFile, data: Buffer) -> None:
        with self._operation("write", file.path, data):
            view = memoryview(data).cast("B")
            while view:
                view = view[_write_some(file.descriptor, view) :]

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


_DIRECT = getattr(os, "O_DIRECT", 0)


def _set_direct(descriptor: int, on: bool) -> None:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with suppress(OSError):  # not every file system can
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)


def _write_some(descriptor: int, view: memoryview) -> int:
    """Write a part; direct writes are of whole pages, what is left goes through the cache."""
    direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & _DIRECT)
    pages = len(view) // mmap.PAGESIZE * mmap.PAGESIZE
    if direct and pages:
        try:
            return os.write(descriptor, view[:pages])
        except OSError as error:
            if error.errno != errno.EINVAL:  # which is said of memory or a place that is not aligned
                raise
    if direct:
        _set_direct(descriptor, False)
    return os.write(descriptor, view)


def free_bytes(path: Path) -> int:
    """Return what an ordinary user may still write to the file system of `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
