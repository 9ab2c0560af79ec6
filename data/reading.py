"""Reading bytes of many files: a bounded number of them open, object stores through a cache of blocks on disk.

Files are read with `pread` and not mapped: a file that was truncated after it was opened is then a short read, which is
an error of one window, where touching the missing page of a map would end the process.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.data.extras import need
from isthmus.files import write_atomically
from isthmus.hashing import BLOCK_BYTES


class BadRead(Exception):
    """Some bytes could not be had, or are not what the manifest says."""


@dataclass(frozen=True)
class File:
    """A file to read ranges of: a path or an fsspec URL, its size, and its blocks' SHA-256 where they are known."""

    location: str
    bytes: int
    blocks: Sequence[str] = ()
    block_bytes: int = BLOCK_BYTES

    @property
    def remote(self) -> bool:
        return "://" in self.location


class Reader:
    """Fills buffers from files; each process that reads has one of its own, opened when first used.

    Args:
        open_files: limit on descriptors; the one that was used longest ago is closed first.
        cache: folder for blocks of object stores.
        cache_bytes: limit on its size; blocks that were used longest ago go first.
        check_blocks: compare each block of a local file with its hash when it is first read. Blocks of an object store
            are always compared, since they arrive whole.
    """

    def __init__(self, open_files: int, cache: Path, cache_bytes: int, *, check_blocks: bool = False) -> None:
        self._limit, self._check = open_files, check_blocks
        self._remote = BlockCache(cache / "blocks", cache_bytes)
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_check": self._check, "_remote": self._remote}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def open_count(self) -> int:
        return len(self._open)

    def read(self, file: File, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from a file.

        Raises:
            BadRead: the file cannot be read, is shorter, or a block of it has another hash.
        """
        if file.remote:
            self._read_remote(file, offset, buffer)
            return
        if self._process != os.getpid():
            self._forget()  # descriptors are shared with the process that we were forked from; its records are not
        try:
            descriptor = self._open.get(file.location)
            if descriptor is None:
                descriptor = self._open_file(file.location)
            else:
                self._open.move_to_end(file.location)
            if self._check and file.blocks:
                self._check_blocks(file, descriptor, offset, len(buffer))
            got = os.preadv(descriptor, [buffer], offset)
            while got < len(buffer):
                more = os.preadv(descriptor, [buffer[got:]], offset + got)
                if not more:
                    raise BadRead(
                        f"{file.location} ends {len(buffer) - got} bytes before the end of a read at {offset}"
                    )
                got += more
        except OSError as error:
            raise BadRead(f"{file.location} cannot be read: {error.strerror}") from None

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[str, int] = OrderedDict()
        self._verdicts: dict[tuple[str, int], bool] = {}

    def _open_file(self, location: str) -> int:
        while len(self._open) >= self._limit:
            os.close(self._open.popitem(last=False)[1])
        self._open[location] = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[location]

    def _check_blocks(self, file: File, descriptor: int, offset: int, count: int) -> None:
        for number in range(offset // file.block_bytes, (offset + count - 1) // file.block_bytes + 1):
            place = (file.location, number)
            if place not in self._verdicts:
                content = os.pread(descriptor, file.block_bytes, number * file.block_bytes)
                self._verdicts[place] = hashlib.sha256(content).hexdigest() == file.blocks[number]
            if not self._verdicts[place]:
                raise BadRead(f"{file.location}: block {number} is not what its manifest says")

    def _read_remote(self, file: File, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > file.bytes:
            raise BadRead(f"{file.location} ends before the end of a read at {offset}")
        done = 0
        while done < len(buffer):
            number, inside = divmod(offset + done, file.block_bytes)
            part = min(len(buffer) - done, file.block_bytes - inside)
            self._remote.read(file, number, inside, buffer[done : done + part])
            done += part


class BlockCache:
    """Blocks of remote files on local disk, shared by the processes of a machine; written by atomic rename."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self._limit = folder, limit_bytes
        self.fetched_bytes = 0
        self._files: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_limit": self._limit, "fetched_bytes": 0, "_files": {}}

    def read(self, file: File, number: int, inside: int, buffer: memoryview) -> None:
        path = self._path(file, number)
        with suppress(FileNotFoundError), path.open("rb", buffering=0) as cached:
            cached.seek(inside)
            if cached.readinto(buffer) == len(buffer):
                os.utime(path)
                return
        block = self._fetch(file, number)
        try:
            self._make_room(len(block))
            write_atomically(path, block)
        except OSError as error:
            raise BadRead(f"the cache {self.folder} cannot be written: {error.strerror}") from None
        buffer[:] = block[inside : inside + len(buffer)]

    def _path(self, file: File, number: int) -> Path:
        # The hash of the content where it is known: a file that changed in place is another one.
        known = file.blocks[number] if file.blocks else f"{file.location}/{file.bytes}"
        return self.folder / hashlib.sha256(f"{known}/{number}".encode()).hexdigest()[:32]

    def _fetch(self, file: File, number: int) -> bytes:
        first = number * file.block_bytes
        last = min(first + file.block_bytes, file.bytes)
        try:
            filesystem, path = need("fsspec.core").url_to_fs(file.location)
            block: bytes = filesystem.cat_file(path, start=first, end=last)
        except OSError as error:
            raise BadRead(f"{file.location} cannot be read: {error}") from None
        self.fetched_bytes += len(block)
        if len(block) != last - first:
            raise BadRead(f"{file.location} ends before byte {last}")
        if file.blocks and hashlib.sha256(block).hexdigest() != file.blocks[number]:
            raise BadRead(f"{file.location}: block {number} is not what its manifest says")
        return block

    def _make_room(self, wanted: int) -> None:
        with _one_at_a_time:
            entries = []
            with suppress(FileNotFoundError):
                for entry in os.scandir(self.folder):
                    with suppress(FileNotFoundError):
                        entries.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
            total = sum(size for _, size, _ in entries) + wanted
            for _, size, path in sorted(entries):
                if total <= self._limit:
                    break
                with suppress(FileNotFoundError):
                    os.unlink(path)
                total -= size


_one_at_a_time = threading.Lock()
