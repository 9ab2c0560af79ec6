"""Opening a source of shards: a prepared or imported dataset, on disk or in an object store, or a Megatron prefix."""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.extras import need
from isthmus.data.reading import File, Reader
from isthmus.data.shards.index import DTYPES, MAGIC
from isthmus.data.shards.manifest import DATASET_MANIFEST, SHARD_SUFFIX
from isthmus.data.streams import Part, ShardStream
from isthmus.errors import UserError

_HEAD = struct.Struct("<9sQBQQ")
_SAMPLED_BLOCKS, _SAMPLE_BYTES = 64, 4_096


@dataclass(frozen=True)
class ShardSource:
    """All shards of a source in one stream; what the manifest says of it is empty for a bare prefix."""

    stream: ShardStream
    fingerprint: str
    tokenizer: dict[str, Any]
    folder: Path | None
    synthetic: bool = False
    decontaminated: dict[str, list[str]] = field(default_factory=dict)


def is_shard_path(path: str) -> bool:
    """Say whether a source's path means shards and not text files."""
    if "://" in path:
        return True
    file = Path(path).expanduser()
    if (file / DATASET_MANIFEST).is_file():
        return True
    prefix = _prefix(file)
    return prefix.with_name(prefix.name + ".bin").is_file() and prefix.with_name(prefix.name + ".idx").is_file()


def open_shards(path: str, only: str | None, reader: Reader, where: str) -> ShardSource:
    """Open a source without reading more than its manifests.

    Raises:
        UserError: there is no dataset, the named source is not in it, or a file is missing or has another size.
    """
    if "://" in path or (Path(path).expanduser() / DATASET_MANIFEST).is_file():
        return _open_dataset(path, only, reader, where)
    if only is not None:
        raise UserError(f"is '{only}', and a Megatron prefix has no sources", where=f"{where}.only", fix="leave it out")
    part, fingerprint = _bare(_prefix(Path(path).expanduser()))
    return ShardSource(ShardStream([part], reader), fingerprint, {}, None)


def cut_held_out(stream: ShardStream, wanted: int) -> tuple[ShardStream, ShardStream]:
    """Split off the last documents, about `wanted` tokens; only the index of the shard that is cut is read.

    A shard that is a single document is cut inside it.
    """
    cut = len(stream) - wanted
    if wanted <= 0:
        return stream, stream.view(len(stream), len(stream))
    ends = np.cumsum([part.tokens for part in stream.parts])
    number = int(np.searchsorted(ends, cut, side="right"))
    before = int(ends[number - 1]) if number else 0
    part = stream.parts[number]
    if not part.file.remote:
        starts = part.document_starts() + before
        inside = int(np.searchsorted(starts, cut, side="right")) - 1
        below, above = int(starts[inside]), int(starts[min(inside + 1, len(starts) - 1)])
        cut = below if below > 0 else above if above < len(stream) else cut
    return stream.view(0, cut), stream.view(cut, len(stream))


def _open_dataset(path: str, only: str | None, reader: Reader, where: str) -> ShardSource:
    root = path.rstrip("/") if "://" in path else str(Path(path).expanduser())
    manifest = _read_json(f"{root}/{DATASET_MANIFEST}", where)
    names = [entry["name"] for entry in manifest["shards"] if only is None or entry["source"] == only]
    if not names:
        raise UserError(
            f"there is no source '{only}' in {path}" if only else f"{path} is empty",
            where=f"{where}.only",
            fix=f"choose one of: {', '.join(manifest['sources'])}",
        )
    digest = hashlib.sha256()
    parts = []
    for name in names:
        content = _read_json(f"{root}/{name}{SHARD_SUFFIX}", where)
        part, identity = _part(root, content, where)
        digest.update(identity.encode())
        if part.tokens:
            parts.append(part)
    if not parts:
        raise UserError(f"{path} has no token", where=where, fix="prepare it anew")
    _same_type(parts, where)
    folder = None if "://" in path else Path(root)
    kinds: dict[str, str] = manifest.get("kinds", {})
    return ShardSource(
        ShardStream(parts, reader),
        digest.hexdigest()[:24],
        manifest["tokenizer"],
        folder,
        synthetic=any(kind == "synthetic" for name, kind in kinds.items() if only in (None, name)),
        decontaminated=manifest.get("decontaminated", {}),
    )


def _part(root: str, content: dict[str, Any], where: str) -> tuple[Part, str]:
    (record,) = (record for record in content["files"] if record["name"].endswith(".bin"))
    location = os.path.join(root, record["name"])
    dtype = np.dtype(content["dtype"])
    if record["bytes"] != content["tokens"] * dtype.itemsize:
        raise UserError(
            f"has {record['bytes']} bytes, and the documents of its index take {content['tokens'] * dtype.itemsize}",
            where=location,
            fix="its documents overlap or leave gaps: write it anew with Megatron's own tools",
        )
    remote = "://" in root
    if not remote:
        try:
            size = os.stat(location).st_size
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", where=location, fix="copy the data anew") from None
        if size != record["bytes"]:
            raise UserError(
                f"has {size} bytes instead of {record['bytes']}", where=location, fix="copy it anew; it is damaged"
            )
    file = File(location, record["bytes"], record["blocks"], record["block_bytes"])
    # The name of the place is not part of what the data is.
    identity = json.dumps([content["name"], content["tokens"], content["dtype"], record["blocks"]])
    return Part(content["name"], file, dtype, content["documents"], None if remote else Path(root)), identity


def _bare(prefix: Path) -> tuple[Part, str]:
    """Describe a `.bin` and `.idx` without a manifest by their sizes and a sample of their bytes."""
    binary, index = prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")
    size = binary.stat().st_size
    with index.open("rb") as file:
        head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or head[:9] != MAGIC or head[17] not in DTYPES:
        raise UserError("is no Megatron index", where=str(index), fix="give the prefix of a .bin and .idx")
    _, _, code, _, boundaries = _HEAD.unpack(head)
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
    return Part(prefix.name, File(str(binary), size), dtype, boundaries - 1), digest.hexdigest()[:24]


def _prefix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (".bin", ".idx") else path


def _read_json(location: str, where: str) -> dict[str, Any]:
    try:
        if "://" in location:
            filesystem, path = need("fsspec.core").url_to_fs(location)
            content = filesystem.cat_file(path)
        else:
            content = Path(location).read_bytes()
        value: dict[str, Any] = json.loads(content)
        return value
    except FileNotFoundError:
        raise UserError(f"there is no {location}", where=f"{where}.path", fix="give a finished dataset") from None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{location} cannot be read: {error}", where=f"{where}.path", fix="check it") from None


def _same_type(parts: Sequence[Part], where: str) -> None:
    if len(types := {part.dtype.name for part in parts}) > 1:
        raise UserError(f"holds tokens of several types: {', '.join(sorted(types))}", where=where, fix="use only=NAME")
