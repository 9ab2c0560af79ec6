"""What a shard and a dataset consist of, with hashes that tell a damaged file from a whole one."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isthmus.errors import UserError
from isthmus.files import write_json

DATASET_MANIFEST = "manifest.json"
SHARD_SUFFIX = ".manifest.json"
BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class FileRecord:
    """A file's size and the SHA-256 of each of its blocks of `block_bytes`."""

    name: str
    bytes: int
    blocks: list[str]
    block_bytes: int = BLOCK_BYTES


@dataclass(frozen=True)
class ShardManifest:
    """Everything about one shard; written after its files, so a shard with a manifest is whole."""

    name: str
    source: str
    documents: int
    tokens: int
    dtype: str
    files: list[FileRecord]


@dataclass(frozen=True)
class DatasetManifest:
    """Everything about a dataset; written last, so a dataset with a manifest is complete.

    `kinds` names the sources that are synthetic; `decontaminated` the SHA-256 of the benchmarks whose words no document
    shares, by the length of the n-grams that were compared.
    """

    tool: str
    config: str
    tokenizer: dict[str, Any]
    sources: dict[str, dict[str, int]]
    shards: list[dict[str, Any]]
    format: int = 1
    inputs: list[dict[str, Any]] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    decontaminated: dict[str, list[str]] = field(default_factory=dict)


def record_file(path: Path, name: str | None = None) -> FileRecord:
    """Read a file once and return its record."""
    blocks = [hashlib.sha256(block).hexdigest() for block in _blocks(path, BLOCK_BYTES)]
    return FileRecord(name or path.name, path.stat().st_size, blocks)


def write_shard_manifest(folder: Path, manifest: ShardManifest) -> None:
    write_json(folder / f"{manifest.name}{SHARD_SUFFIX}", asdict(manifest))


def read_shard_manifest(path: Path) -> ShardManifest:
    """Read a shard's manifest.

    Raises:
        UserError: it is missing or no manifest.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        files = [FileRecord(**record) for record in content.pop("files")]
        return ShardManifest(**content, files=files)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"is no shard manifest: {error}", where=str(path), fix="prepare or import the data anew"
        ) from None


def write_dataset_manifest(folder: Path, manifest: DatasetManifest) -> None:
    write_json(folder / DATASET_MANIFEST, asdict(manifest))


def read_dataset_manifest(folder: Path) -> DatasetManifest:
    """Read the manifest of a dataset.

    Raises:
        UserError: the folder holds no complete dataset.
    """
    path = folder / DATASET_MANIFEST
    try:
        return DatasetManifest(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise UserError(
            "holds no finished dataset", where=str(folder), fix="run `isthmus data prepare` to its end"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"is no dataset manifest: {error}", where=str(path), fix="prepare the data anew") from None


def damaged_files(folder: Path, manifest: ShardManifest) -> Iterator[str]:
    """Yield one line for every file of a shard that is not what its manifest says, and where it differs."""
    for record in manifest.files:
        path = folder / record.name
        try:
            size = path.stat().st_size
            if size != record.bytes:
                yield f"{path}: {size} bytes instead of {record.bytes}"
                continue
            for number, block in enumerate(_blocks(path, record.block_bytes)):
                if hashlib.sha256(block).hexdigest() != record.blocks[number]:
                    yield f"{path}: block {number} (from byte {number * record.block_bytes}) has another hash"
        except OSError as error:
            yield f"{path}: {error.strerror}"


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(size):
            yield block
