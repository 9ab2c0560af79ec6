"""Opening a source of shards: a prepared or imported dataset, on disk or in an object store, or a Megatron prefix."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.held_out import choose_held_out, without
from isthmus.data.packed import PackedStream, Table
from isthmus.data.reading import BlockHashes, File, Reader, read_whole
from isthmus.data.shards.index import DTYPES, HEADER, MAGIC
from isthmus.data.shards.manifest import DATASET_MANIFEST, FORMAT, SHARD_SUFFIX, is_synthetic_shard
from isthmus.data.streams import Extent, Part, ShardStream, Stream
from isthmus.errors import UserError

_SAMPLED_BLOCKS, _SAMPLE_BYTES = 64, 4_096


@dataclass(frozen=True)
class ShardSource:
    """All shards of a source; what the manifest says of it is empty for a bare prefix.

    Args:
        tables: of the shards' packed windows, where samples are to be made of those.
        fingerprint: of all that samples are read from, tables included.
    """

    parts: Sequence[Part]
    reader: Reader
    fingerprint: str
    tokenizer: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    tables: Sequence[Table] = ()
    synthetic: bool = False
    decontaminated: dict[str, list[str]] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def stream(self) -> ShardStream:
        return self._stream([Extent(part, 0, part.tokens) for part in self.parts])

    def split(self, held_out_tokens: int, sequence_length: int | None = None) -> tuple[Stream, Stream]:
        """Return what is trained on and what is held out, about so many tokens of whole documents.

        Raises:
            UserError: an index is damaged.
        """
        held_out = choose_held_out(self.parts, held_out_tokens, self.reader)
        if self.tables:
            assert sequence_length is not None
            return PackedStream(self.tables, held_out, sequence_length, self.reader), self._stream(held_out)
        return self._stream(without(self.parts, held_out)), self._stream(held_out)

    def _stream(self, extents: Sequence[Extent]) -> ShardStream:
        return ShardStream(extents, self.reader, self.parts[0].dtype)


def is_shard_path(path: str) -> bool:
    """Say whether a source's path means shards and not text files."""
    if "://" in path:
        return True
    file = Path(path).expanduser()
    if (file / DATASET_MANIFEST).is_file():
        return True
    prefix = _prefix(file)
    return prefix.with_name(prefix.name + ".bin").is_file() and prefix.with_name(prefix.name + ".idx").is_file()


def open_shards(
    path: str, only: str | None, reader: Reader, where: str, *, packed_for: int | None = None
) -> ShardSource:
    """Open a source without reading more than its dataset's manifest.

    Args:
        packed_for: length of the packed windows that samples are to be (None: of tokens in a row).

    Raises:
        UserError: there is no dataset, the named source is not in it, a file is missing or has another size, or there
            is no table of such windows.
    """
    if "://" in path or (Path(path).expanduser() / DATASET_MANIFEST).is_file():
        return _open_dataset(path, only, reader, where, packed_for)
    if only is not None:
        raise UserError(f"is '{only}', and a Megatron prefix has no sources", where=f"{where}.only", fix="leave it out")
    if packed_for is not None:
        raise UserError(
            "is a bare Megatron prefix, which has no table of packed windows",
            where=f"{where}.path",
            fix=f"`isthmus data import` it, and `isthmus data pack DIR sequence_length={packed_for}`",
        )
    prefix = _prefix(Path(path).expanduser())
    part, fingerprint = _bare(prefix)
    return ShardSource([part], reader, fingerprint, synthetic=is_synthetic_shard(prefix))


def _open_dataset(path: str, only: str | None, reader: Reader, where: str, packed_for: int | None) -> ShardSource:
    root = path.rstrip("/") if "://" in path else str(Path(path).expanduser())
    manifest = _read_json(f"{root}/{DATASET_MANIFEST}", where)
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"has format {manifest.get('format')}, this version reads {FORMAT}",
            where=f"{root}/{DATASET_MANIFEST}",
            fix="prepare or import the data anew",
        )
    entries = [entry for entry in manifest["shards"] if only is None or entry["source"] == only]
    if not entries:
        raise UserError(
            f"there is no source '{only}' in {path}" if only else f"{path} is empty",
            where=f"{where}.only",
            fix=f"choose one of: {', '.join(manifest['sources'])}",
        )
    digest = hashlib.sha256()
    parts, tables = [], []
    for entry in entries:
        part, identity = _part(root, entry)
        digest.update(identity.encode())
        if not part.tokens:
            continue
        parts.append(part)
        if packed_for is not None:
            table, identity = _table(root, entry, part, packed_for, where)
            digest.update(identity.encode())
            tables.append(table)
    if not parts:
        raise UserError(f"{path} has no token", where=where, fix="prepare it anew")
    _same_type(parts, where)
    folder = None if "://" in path else Path(root)
    kinds: dict[str, str] = manifest.get("kinds", {})
    return ShardSource(
        parts,
        reader,
        digest.hexdigest()[:24],
        manifest["tokenizer"],
        folder,
        tables,
        synthetic=any(kind == "synthetic" for name, kind in kinds.items() if only in (None, name)),
        decontaminated=manifest.get("decontaminated", {}),
    )


def _part(root: str, entry: dict[str, Any]) -> tuple[Part, str]:
    records = {record["name"].rpartition(".")[2]: record for record in entry["files"]}
    record, dtype = records["bin"], np.dtype(entry["dtype"])
    if record["bytes"] != entry["tokens"] * dtype.itemsize:
        raise UserError(
            f"has {record['bytes']} bytes, and the documents of its index take {entry['tokens'] * dtype.itemsize}",
            where=os.path.join(root, record["name"]),
            fix="its documents overlap or leave gaps: write it anew with Megatron's own tools",
        )
    file, index = (_file(root, entry["name"], records[suffix]) for suffix in ("bin", "idx"))
    # The name of the place is not part of what the data is.
    identity = json.dumps([entry["name"], entry["tokens"], entry["dtype"], record["digest"]])
    lineage = os.path.join(root, records["parquet"]["name"]) if "parquet" in records else None
    return Part(entry["name"], file, index, dtype, entry["documents"], lineage), identity


def _table(root: str, entry: dict[str, Any], part: Part, length: int, where: str) -> tuple[Table, str]:
    packings = {packing["sequence_length"]: packing for packing in entry["packings"]}
    if length not in packings:
        others = ", ".join(str(known) for known in sorted(packings))
        raise UserError(
            f"{part.name} is packed for samples of {others or 'no length'}, not of {length}",
            where=where,
            fix=f"`isthmus data pack DIR sequence_length={length}`, or "
            + (f"set train.sequence_length={others}" if len(packings) == 1 else "data.packing=stream"),
        )
    packing = packings[length]
    (record,) = (record for record in entry["files"] if record["name"] == packing["name"])
    file = _file(root, entry["name"], record)
    table = Table(part, file, packing["windows"], packing["pieces"], packing["tokens"])
    return table, json.dumps([packing["windows"], packing["pieces"], record["digest"]])


def _file(root: str, shard: str, record: dict[str, Any]) -> File:
    """Describe a file; one on this machine must have the size that its record says."""
    location, size, block_bytes = os.path.join(root, record["name"]), record["bytes"], record["block_bytes"]
    if "://" not in root:
        try:
            found = os.stat(location).st_size
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", where=location, fix="copy the data anew") from None
        if found != size:
            raise UserError(f"has {found} bytes instead of {size}", where=location, fix="copy it anew; it is damaged")
    manifest = f"{root}/{shard}{SHARD_SUFFIX}"
    blocks = BlockHashes(manifest, record["name"], -(-size // block_bytes), record["digest"])
    return File(location, size, blocks, block_bytes)


def _bare(prefix: Path) -> tuple[Part, str]:
    """Describe a `.bin` and `.idx` without a manifest by their sizes and a sample of their bytes."""
    binary, index = prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")
    size = binary.stat().st_size
    with index.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or head[:9] != MAGIC or head[17] not in DTYPES:
        raise UserError("is no Megatron index", where=str(index), fix="give the prefix of a .bin and .idx")
    _, _, code, _, boundaries = HEADER.unpack(head)
    dtype = DTYPES[code]
    if dtype.kind not in "iu" or size % dtype.itemsize or not size:
        raise UserError(f"holds {size} bytes of {dtype.name}", where=str(binary), fix="give a dataset of tokens")
    digest = hashlib.sha256(head + str((size, index.stat().st_size)).encode())
    for path in (binary, index):
        last = path.stat().st_size - _SAMPLE_BYTES
        with path.open("rb") as file:
            for number in range(_SAMPLED_BLOCKS):
                file.seek(max(0, last * number // (_SAMPLED_BLOCKS - 1)))
                digest.update(file.read(_SAMPLE_BYTES))
    files = File(str(binary), size), File(str(index), index.stat().st_size)
    return Part(prefix.name, *files, dtype, boundaries - 1), digest.hexdigest()[:24]


def _prefix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _read_json(location: str, where: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(read_whole(location))
        return value
    except FileNotFoundError:
        raise UserError(f"there is no {location}", where=f"{where}.path", fix="give a finished dataset") from None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{location} cannot be read: {error}", where=f"{where}.path", fix="check it") from None


def _same_type(parts: Sequence[Part], where: str) -> None:
    if len(types := {part.dtype.name for part in parts}) > 1:
        raise UserError(f"holds tokens of several types: {', '.join(sorted(types))}", where=where, fix="use only=NAME")
