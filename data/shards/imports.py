"""Existing Megatron datasets: checked, hashed and described where they lie, never copied."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isthmus import __version__
from isthmus.data.shards.manifest import (
    DATASET_MANIFEST,
    DatasetManifest,
    ShardManifest,
    is_synthetic_shard,
    listed,
    record_file,
    write_dataset_manifest,
    write_shard_manifest,
)
from isthmus.data.shards.shard import Shard
from isthmus.errors import UserError


def import_shards(prefixes: Sequence[Path], out: Path, *, source: str, tokenizer: dict[str, Any]) -> DatasetManifest:
    """Write manifests for `.bin`/`.idx` pairs into `out`; they keep their place and are named by relative path.

    What a manifest beside one of them calls synthetic makes the source synthetic.

    Raises:
        UserError: a pair is missing or damaged, `out` holds a dataset already, or no prefix is given.
    """
    if not prefixes:
        raise UserError("there are no .bin and .idx pairs", where="data import", fix="give prefixes, files or folders")
    if (out / DATASET_MANIFEST).exists():
        raise UserError("holds a dataset already", where=str(out), fix="choose another folder")
    shards = []
    for number, prefix in enumerate(prefixes):
        with Shard(prefix) as shard:
            files = []
            for path in (shard.bin_path, shard.idx_path):
                name = os.path.relpath(path.resolve(), out.resolve())
                files.append(record_file(path, name))
            shards.append(
                ShardManifest(
                    name=f"{source}-{number:05d}",
                    source=source,
                    documents=len(shard),
                    tokens=shard.index.tokens,
                    dtype=shard.dtype.name,
                    files=files,
                )
            )
    if len(types := {shard.dtype for shard in shards}) > 1:
        raise UserError(
            f"the shards hold tokens of several types: {', '.join(sorted(types))}",
            where="data import",
            fix="import what one tokenizer made together, and the rest apart",
        )
    for shard_manifest in shards:
        write_shard_manifest(out, shard_manifest)
    manifest = dataset_manifest(shards, config="imported", tokenizer=tokenizer)
    if any(is_synthetic_shard(prefix) for prefix in prefixes):
        manifest = replace(manifest, kinds={source: "synthetic"})
    write_dataset_manifest(out, manifest)
    return manifest


def expand_prefixes(words: Sequence[str]) -> list[Path]:
    """Return the prefixes that words mean: a prefix, a `.bin` or `.idx` file, or a folder that is searched.

    Raises:
        UserError: a word means nothing that exists.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            inside = sorted(file.with_suffix("") for file in path.rglob("*.bin") if file.with_suffix(".idx").exists())
            if not inside:
                raise UserError("holds no .bin with its .idx", where=word, fix="give a Megatron dataset's folder")
            found += inside
        else:
            found.append(path.with_suffix("") if path.suffix in (".bin", ".idx") else path)
    return list(dict.fromkeys(found))


def dataset_manifest(
    shards: Sequence[ShardManifest],
    *,
    config: str,
    tokenizer: dict[str, Any],
    inputs: list[dict[str, Any]] | None = None,
    libraries: dict[str, str] | None = None,
    decontaminated: dict[str, list[str]] | None = None,
) -> DatasetManifest:
    """Sum shards up by source."""
    sources: dict[str, dict[str, int]] = {}
    for shard in shards:
        counts = sources.setdefault(shard.source, {"documents": 0, "tokens": 0, "shards": 0})
        counts["documents"] += shard.documents
        counts["tokens"] += shard.tokens
        counts["shards"] += 1
    return DatasetManifest(
        tool=f"isthmus {__version__}",
        config=config,
        tokenizer=tokenizer,
        sources=sources,
        shards=[listed(shard) for shard in shards],
        inputs=inputs or [],
        libraries=libraries or {},
        decontaminated=decontaminated or {},
    )
