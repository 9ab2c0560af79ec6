"""SHA-256 of files in blocks: written beside the data, checked by several threads, and a flipped bit has a place."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from typing_extensions import Buffer

BLOCK_BYTES = 16 << 20


def digest(data: Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


def check_blocks(
    path: Path, size: int, digests: list[str], block_bytes: int, done: Callable[[int], None] = lambda count: None
) -> str:
    """Compare a file with the hashes of its blocks; return what is wrong, or "".

    Args:
        done: told the number of bytes after each block, from several threads.
    """
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"{path.name} has {actual} bytes instead of {size}"
        if block_bytes <= 0 or len(digests) != -(-size // block_bytes):
            return f"{path.name} has {len(digests)} hashes, which do not cover it"
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

            def check(number: int) -> bool:
                length = min(block_bytes, size - number * block_bytes)
                good = _hash_range(file.fileno(), number * block_bytes, length) == digests[number]
                done(length)
                return good

            for number, good in enumerate(pool.map(check, range(len(digests)))):
                if not good:
                    first = number * block_bytes
                    return f"{path.name} is damaged between byte {first} and {min(first + block_bytes, size)}"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return ""


def _hash_range(descriptor: int, first: int, length: int) -> str:
    # In pieces that stay in a processor's cache between the read and the hash.
    state, piece = hashlib.sha256(), bytearray(min(length, 1 << 20))
    while length:
        view = memoryview(piece)[: min(length, len(piece))]
        count = os.preadv(descriptor, [view], first)
        if not count:
            break
        state.update(view[:count])
        first, length = first + count, length - count
    return state.hexdigest()
