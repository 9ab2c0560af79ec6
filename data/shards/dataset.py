"""A folder of shards as one dataset: documents with their lineage, and verification of every file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.data.shards.lineage import read_lineage
from isthmus.data.shards.manifest import (
    DATASET_MANIFEST,
    SHARD_SUFFIX,
    DatasetManifest,
    ShardManifest,
    damaged_files,
    listed,
    read_dataset_manifest,
    read_shard_manifest,
)
from isthmus.data.shards.shard import Shard, Tokens, bin_path


@dataclass(frozen=True)
class ShardDocument:
    """A document of a dataset: its tokens, and its row of the lineage file (empty for imported data)."""

    shard: str
    number: int
    tokens: Tokens
    lineage: dict[str, Any]


class Dataset:
    """What `isthmus data prepare` or `isthmus data import` wrote.

    Raises:
        UserError: the folder holds no complete dataset.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: DatasetManifest = read_dataset_manifest(folder)
        self.shards: list[ShardManifest] = [
            read_shard_manifest(folder / f"{entry['name']}{SHARD_SUFFIX}") for entry in self.manifest.shards
        ]

    @property
    def documents(self) -> int:
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    def open(self, shard: ShardManifest) -> Shard:
        (record,) = (record for record in shard.files if record.name.endswith(".bin"))
        # An imported shard's files are named by path, which may be absolute.
        path = self.folder / record.name
        return Shard(path.with_name(path.name.removesuffix(".bin")))

    def document(self, number: int) -> ShardDocument:
        """Return a document by its number in the order of the shards."""
        for shard in self.shards:
            if number < shard.documents:
                with self.open(shard) as opened:
                    lineage = read_lineage(self.folder, shard, number)
                    return ShardDocument(shard.name, number, opened.document(number), lineage)
            number -= shard.documents
        raise IndexError(f"document {number} beyond the last")

    def damaged(self) -> Iterator[str]:
        """Yield one line for every file that is missing or not what the manifests say."""
        for shard, entry in zip(self.shards, self.manifest.shards, strict=True):
            if listed(shard) != entry:
                yield f"{self.folder / shard.name}{SHARD_SUFFIX}: is not what {DATASET_MANIFEST} says of it"
            yield from damaged_files(self.folder, shard)


__all__ = ["Dataset", "ShardDocument", "bin_path"]
