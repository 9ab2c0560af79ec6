"""What a shard and a dataset consist of, with hashes that tell a damaged file from a whole one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isthmus.errors import UserError
from isthmus.files import write_json
from isthmus.hashing import BLOCK_BYTES, check_blocks, digest, hash_blocks

DATASET_MANIFEST = "manifest.json"
SHARD_SUFFIX = ".manifest.json"
FORMAT = 2


@dataclass(frozen=True)
class FileRecord:
    """A file's size and the SHA-256 of each of its blocks of `block_bytes`."""

    name: str
    bytes: int
    blocks: list[str]
    block_bytes: int = BLOCK_BYTES


@dataclass(frozen=True)
class Packing:
    """A table of windows of whole documents (see `packing.py`); `tokens` are those in its windows, without padding."""

    sequence_length: int
    name: str
    windows: int
    pieces: int
    tokens: int


@dataclass(frozen=True)
class ShardManifest:
    """Everything about one shard; written after its files, so a shard with a manifest is whole."""

    name: str
    source: str
    documents: int
    tokens: int
    dtype: str
    files: list[FileRecord]
    packings: list[Packing] = field(default_factory=list)

    def packing(self, sequence_length: int) -> Packing | None:
        """Return the table for windows of this length, or None."""
        return next((entry for entry in self.packings if entry.sequence_length == sequence_length), None)


@dataclass(frozen=True)
class DatasetManifest:
    """Everything about a dataset; written last, so a dataset with a manifest is complete.

    `shards` are the shards' manifests with one digest in the place of each file's block hashes: to open a dataset,
    however many shards it has, this one file is read.

    `kinds` names the sources that are synthetic; `decontaminated` the SHA-256 of the benchmarks whose words no document
    shares, by the length of the n-grams that were compared.
    """

    tool: str
    config: str
    tokenizer: dict[str, Any]
    sources: dict[str, dict[str, int]]
    shards: list[dict[str, Any]]
    format: int = FORMAT
    inputs: list[dict[str, Any]] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    decontaminated: dict[str, list[str]] = field(default_factory=dict)


def record_file(path: Path, name: str | None = None) -> FileRecord:
    """Read a file once and return its record."""
    return FileRecord(name or path.name, path.stat().st_size, hash_blocks(path))


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
        packings = [Packing(**packing) for packing in content.pop("packings", [])]
        return ShardManifest(**content, files=files, packings=packings)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"is no shard manifest: {error}", where=str(path), fix="prepare or import the data anew"
        ) from None


def digest_of(blocks: Sequence[str]) -> str:
    """Return one hash for those of a file's blocks."""
    return digest("".join(blocks).encode())


def listed(shard: ShardManifest) -> dict[str, Any]:
    """Return a shard as its dataset's manifest lists it."""
    entry = asdict(shard)
    for record in entry["files"]:
        record["digest"] = digest_of(record.pop("blocks"))
    return entry


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


def is_synthetic_shard(prefix: Path) -> bool:
    """Say whether the dataset beside a shard's files, if there is one, calls its source synthetic."""
    manifest = _beside(prefix)
    return manifest is not None and any(
        manifest.kinds.get(entry["source"]) == "synthetic"
        for entry in manifest.shards
        if any(record["name"] == f"{prefix.name}.bin" for record in entry["files"])
    )


def is_synthetic_text(file: Path) -> bool:
    """Say whether a text file lies where `isthmus data synthesize` writes: beside its plan or its dataset."""
    manifest = _beside(file)
    if manifest is not None:
        return "synthetic" in manifest.kinds.values()
    try:
        return set(json.loads((file.parent / "plan.json").read_text("utf-8"))) == {"hash"}
    except (OSError, ValueError, TypeError):
        return False


def _beside(file: Path) -> DatasetManifest | None:
    """Return the manifest of the dataset in a file's folder; None where there is none of ours."""
    try:
        return read_dataset_manifest(file.parent)
    except UserError:
        return None


def damaged_files(folder: Path, manifest: ShardManifest) -> Iterator[str]:
    """Yield one line for every file of a shard that is not what its manifest says, and where it differs."""
    for record in manifest.files:
        path = folder / record.name
        if wrong := check_blocks(path, record.bytes, record.blocks, record.block_bytes):
            yield f"{path.parent}: {wrong}"
