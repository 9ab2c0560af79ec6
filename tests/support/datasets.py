"""Small datasets of shards with known tokens: token i of the stream is i modulo the vocabulary."""

from pathlib import Path

import numpy as np

from isthmus.data.shards.imports import import_shards
from isthmus.data.shards.index import write_index

VOCABULARY, END = 1_000, 0


def write_shards(folder: Path, documents: list[list[int]], *, dtype: str = "<u2") -> list[Path]:
    """Write a shard for each list of document lengths and return their prefixes."""
    folder.mkdir(parents=True, exist_ok=True)
    prefixes, token = [], 0
    for number, lengths in enumerate(documents):
        prefix = folder / f"part-{number:03d}"
        tokens = (np.arange(token, token + sum(lengths)) % VOCABULARY).astype(dtype)
        token += sum(lengths)
        prefix.with_suffix(".bin").write_bytes(tokens.tobytes())
        write_index(prefix.with_suffix(".idx"), np.dtype(dtype), np.array(lengths, dtype=np.int32))
        prefixes.append(prefix)
    return prefixes


def write_dataset(folder: Path, documents: list[list[int]]) -> Path:
    """Write shards and the manifests that `isthmus data import` writes."""
    tokenizer = {"name": "none", "sha256": "0", "size": VOCABULARY, "end": END}
    import_shards(write_shards(folder, documents), folder, source="made", tokenizer=tokenizer)
    return folder
