"""The commit protocol: what each rank does, in which order, so that a crash between any two operations does no harm.

    every rank   mkdir the step's folder
                 write its file under its name, fsync it
                 write its vote under a temporary name, fsync it, rename it
    rank 0       wait for all votes, fsync the folder's parent and the folder: all names are durable
                 write the manifest under a temporary name, fsync it, rename it, fsync the folder: committed
                 retire old steps: rename the folder, fsync its parent, remove what is in it

A folder belongs to one save of one attempt and is never written to again. Nothing points to the newest step: whoever
resumes looks which ones verify.

This module and what it imports must not need torch: the writer process starts in a moment, and stays small.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from typing_extensions import Buffer

from isthmus.fault_tolerance.filesystem import FileSystem
from isthmus.fault_tolerance.manifest import Manifest, Vote, check_sizes
from isthmus.fault_tolerance.records import MANIFEST, rank_file, vote_file
from isthmus.hashing import BLOCK_BYTES, digest

RETIRED = "retired-"
_POLL_SECONDS = 0.01


def write_part(fs: FileSystem, folder: Path, rank: int, content: Buffer) -> None:
    """Make this rank's file durable and say so.

    Raises:
        OSError: the disk is full or broken.
    """
    fs.make_folder(folder)
    view = memoryview(content)
    file = fs.create(folder / rank_file(rank), direct=True)
    blocks = []
    try:
        for first in range(0, len(view), BLOCK_BYTES):
            block = view[first : first + BLOCK_BYTES]
            blocks.append(digest(block))
            fs.write(file, block)
        fs.reach("part written")
        fs.sync(file)
    finally:
        fs.close(file)
    fs.reach("part durable")
    _publish(fs, folder / vote_file(rank), Vote(len(view), BLOCK_BYTES, blocks).encode())


def commit(
    fs: FileSystem, folder: Path, manifest: Manifest, *, deadline_seconds: float, alive: Callable[[], bool]
) -> Manifest:
    """Wait for the votes of all ranks and write the manifest: from then on the step exists.

    Args:
        alive: asked while waiting; no longer waits when it says no.

    Raises:
        TimeoutError: a rank did not vote in time.
    """
    votes = _wait_for_votes(folder, manifest.ranks, deadline_seconds, alive)
    total = sum((folder / rank_file(rank)).stat().st_size for rank in range(manifest.ranks))
    total += sum(len(vote) for vote in votes)
    manifest = dataclasses.replace(manifest, total_bytes=total, votes=[digest(vote) for vote in votes])
    check_sizes(folder, manifest)
    fs.sync_folder(folder.parent)
    fs.sync_folder(folder)
    _publish(fs, folder / MANIFEST, manifest.encode(), before_rename=lambda: fs.reach("manifest written"))
    fs.sync_folder(folder)
    fs.reach("committed")
    return manifest


def retire(fs: FileSystem, folders: Sequence[Path]) -> None:
    """Delete checkpoints; under their names they are whole or gone at every moment."""
    for folder in folders:
        if not folder.name.startswith(RETIRED):
            fs.reach("retiring")
            away = folder.with_name(RETIRED + folder.name)
            fs.rename(folder, away)
            fs.sync_folder(folder.parent)
            folder = away
        for path in sorted(folder.iterdir()):
            fs.remove(path)
        fs.remove_folder(folder)


def _publish(fs: FileSystem, path: Path, content: bytes, before_rename: Callable[[], None] = lambda: None) -> None:
    temporary = path.with_name(path.name + ".new")
    file = fs.create(temporary)
    try:
        fs.write(file, content)
        fs.sync(file)
    finally:
        fs.close(file)
    before_rename()
    fs.rename(temporary, path)


def _wait_for_votes(folder: Path, ranks: int, deadline_seconds: float, alive: Callable[[], bool]) -> list[bytes]:
    votes: list[bytes] = []
    give_up = time.monotonic() + deadline_seconds
    while len(votes) < ranks:
        try:
            votes.append((folder / vote_file(len(votes))).read_bytes())
        except FileNotFoundError:
            if time.monotonic() > give_up or not alive():
                raise TimeoutError(
                    f"rank {len(votes)} has not written its part of {folder.name} within {deadline_seconds:g} s"
                ) from None
            time.sleep(_POLL_SECONDS)
    return votes
