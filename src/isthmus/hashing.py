"""SHA-256 of files in blocks: threads read and hash a block each, in order, and a flipped bit has a place."""

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import Buffer

BLOCK_BYTES = 16 << 20
_MOST_THREADS = 8
_READING = 2  # threads beside one a core: a disk is fastest with several reads under way


def digest(data: Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> list[str]:
    """Return the hashes of a file's blocks, the last of which may be shorter.

    Raises:
        OSError: it cannot be read.
    """
    with _opened(path, direct=False) as descriptor:
        return list(_digests(descriptor, path.stat().st_size, block_bytes))


def check_blocks(
    path: Path,
    size: int,
    digests: list[str],
    block_bytes: int,
    done: Callable[[int], None] = lambda count: None,
    *,
    direct: bool = False,
) -> str:
    """Compare a file with the hashes of its blocks; return what is wrong, or "".

    Args:
        done: told the number of bytes after each block.
        direct: read what is on the disk, not what memory still holds of it, where the system can.
    """
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"{path.name} has {actual} bytes instead of {size}"
        if block_bytes <= 0 or len(digests) != -(-size // block_bytes):
            return f"{path.name} has {len(digests)} hashes, which do not cover it"
        with _opened(path, direct=direct and block_bytes % mmap.PAGESIZE == 0) as descriptor:
            for number, found in enumerate(_digests(descriptor, size, block_bytes)):
                first, last = number * block_bytes, min((number + 1) * block_bytes, size)
                if found != digests[number]:
                    return f"{path.name} is damaged between byte {first} and {last} (block {number})"
                done(last - first)
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return ""


@contextmanager
def _opened(path: Path, *, direct: bool) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    if direct and hasattr(os, "posix_fadvise"):
        # Memory lets go of what it holds of the file; reading past it (O_DIRECT) is half as fast on some disks.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _digests(descriptor: int, size: int, block_bytes: int) -> Iterator[str]:
    """Yield the hashes in order."""
    if not size:
        return
    count = -(-size // block_bytes)
    threads = min(_MOST_THREADS, (os.cpu_count() or 1) + _READING, count)
    whole_pages = -(-min(block_bytes, size) // mmap.PAGESIZE) * mmap.PAGESIZE
    buffers = [mmap.mmap(-1, whole_pages) for _ in range(threads)]
    if count == 1:
        yield _hash(buffers[0], _read(descriptor, buffers[0], 0, size))
        return

    def read_and_hash(number: int) -> str:
        buffer, first = buffers[number % threads], number * block_bytes
        return _hash(buffer, _read(descriptor, buffer, first, min(block_bytes, size - first)))

    waiting: deque[Future[str]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for number in range(count):
            if number >= threads:
                yield waiting.popleft().result()  # the last that used the buffer that is next
            waiting.append(pool.submit(read_and_hash, number))
        while waiting:
            yield waiting.popleft().result()


def _read(descriptor: int, buffer: mmap.mmap, first: int, length: int) -> int:
    """Read so many bytes into a buffer, or those that there are; return their number."""
    found = 0
    with memoryview(buffer) as view:
        while found < length:
            # To the end of a page, as a direct read must; what lies beyond the block is not hashed.
            end = -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
            count = os.preadv(descriptor, [view[found:end]], first + found)
            if not count:
                break
            found += count
    return min(found, length)


def _hash(buffer: mmap.mmap, length: int) -> str:
    with memoryview(buffer) as whole, whole[:length] as block:
        return digest(block)
