"""The manifest: a checkpoint exists if and only if its manifest verifies."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isthmus.fault_tolerance.records import MANIFEST, rank_file, vote_file
from isthmus.hashing import check_blocks, digest

FORMAT = 1


class Broken(Exception):
    """A checkpoint that is not whole; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is, written last.

    Attributes:
        step: steps done.
        tokens: that made an update, of all sites.
        round: rounds done with the other sites.
        attempt: of the run, that saved it.
        ranks: of the site, each of which wrote a file.
        layout: sizes of the mesh axes; the same layout can read every rank's own state.
        sync: how the sites were kept one model (none, exact, local).
        sites: their names; site: this one's.
        config: the whole configuration under dotted keys.
        saved_at: seconds since 1970.
        total_bytes: of all files.
        votes: SHA-256 of each rank's vote, which has the hashes of that rank's file.
    """

    step: int
    tokens: int
    round: int
    attempt: int
    ranks: int
    layout: dict[str, int]
    sync: str
    site: str
    sites: list[str]
    config: dict[str, Any] = field(repr=False)
    saved_at: float
    total_bytes: int = 0
    votes: list[str] = field(default_factory=list, repr=False)

    def encode(self) -> bytes:
        """Return the manifest as JSON that carries its own hash."""
        body = {"format": FORMAT, **asdict(self)}
        return json.dumps({**body, "sha256": digest(_canonical(body))}, indent=1).encode()


def read_manifest(folder: Path) -> Manifest:
    """Read a checkpoint's manifest.

    Raises:
        Broken: there is none, or it is not what was written.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
        body = json.loads(content)
        claimed = body.pop("sha256")
        if digest(_canonical(body)) != claimed:
            raise Broken(f"{MANIFEST} is damaged")
        if body.pop("format") != FORMAT:
            raise Broken(f"{MANIFEST} is of another format")
        manifest = Manifest(**body)
        if manifest.ranks != len(manifest.votes) or manifest.ranks < 1:
            raise Broken(f"{MANIFEST} lists {len(manifest.votes)} of {manifest.ranks} ranks")
        if manifest.encode() != content:
            raise Broken(f"{MANIFEST} is damaged: it is not as it was written")
        return manifest
    except FileNotFoundError:
        raise Broken("it was never finished: there is no manifest") from None
    except OSError as error:
        raise Broken(f"{MANIFEST} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Broken(f"{MANIFEST} is damaged ({type(error).__name__})") from None


@dataclass(frozen=True)
class Vote:
    """A rank's word that its file is durable, and the hashes to hold it to."""

    length: int  # of the file, in bytes
    block_bytes: int
    blocks: list[str]

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def read_vote(folder: Path, rank: int, manifest: Manifest | None = None) -> Vote:
    """Read a rank's vote; with a manifest, hold it to its hash.

    Raises:
        Broken: it is not there, or not what was written.
    """
    name = vote_file(rank)
    try:
        content = (folder / name).read_bytes()
        if manifest is not None and digest(content) != manifest.votes[rank]:
            raise Broken(f"{name} is damaged")
        body = json.loads(content)
        return Vote(length=int(body["length"]), block_bytes=int(body["block_bytes"]), blocks=list(body["blocks"]))
    except OSError as error:
        raise Broken(f"{name} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Broken(f"{name} is damaged ({type(error).__name__})") from None


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Make sure that every file is there with its right length, without reading them.

    Raises:
        Broken: one is not.
    """
    for rank in range(manifest.ranks):
        vote, path = read_vote(folder, rank, manifest), folder / rank_file(rank)
        actual = path.stat().st_size if path.is_file() else None
        if actual != vote.length:
            what = "is missing" if actual is None else f"has {actual} bytes instead of {vote.length}"
            raise Broken(f"{path.name} {what}")


def check_hashes(
    folder: Path,
    manifest: Manifest,
    ranks: Iterable[int],
    done: Callable[[int], None] = lambda count: None,
    *,
    direct: bool = False,
) -> None:
    """Read the files of some ranks and compare every byte's hash.

    Args:
        done: told the number of bytes after each block.
        direct: read the disk, past what memory still holds.

    Raises:
        Broken: names the file and the place.
    """
    for rank in ranks:
        vote = read_vote(folder, rank, manifest)
        path = folder / rank_file(rank)
        if wrong := check_blocks(path, vote.length, vote.blocks, vote.block_bytes, done, direct=direct):
            raise Broken(wrong)


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()
