"""What the loader's benchmark reads: the same tokens in shards, packed, in many files, and a large mixture."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

LENGTH, VOCABULARY = 1024, 50_000
LARGE_SHARDS, LARGE_TOKENS = 2_000, 10**12


def write_small(folder: Path, tokens: int) -> None:
    """Write eight shards of documents of 300 to 3,000 tokens, packed too."""
    from isthmus.data.shards.imports import import_shards
    from isthmus.data.shards.packing import pack_dataset

    prefixes = []
    draw = np.random.default_rng(0)
    for number in range(8):
        lengths = draw.integers(300, 3_000, tokens // 8 // 1_650).astype(np.int32)
        content = draw.integers(1, VOCABULARY, int(lengths.sum())).astype("<u2")
        prefixes.append(write_shard(folder / f"part-{number}", lengths, content))
    tokenizer = {"name": "none", "sha256": "0", "size": VOCABULARY, "end": 0}
    import_shards(prefixes, folder, source="small", tokenizer=tokenizer)
    pack_dataset(folder, LENGTH)


def write_shard(prefix: Path, lengths: np.ndarray, content: np.ndarray) -> Path:
    from isthmus.data.shards.index import write_index

    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_suffix(".bin").write_bytes(content.tobytes())
    write_index(prefix.with_suffix(".idx"), np.dtype("<u2"), lengths)
    return prefix


def write_large(folder: Path) -> None:
    """Write 2,000 sparse shards of 5 x 10^8 tokens with manifests as large as real ones, in five datasets."""
    from isthmus.data.shards.imports import dataset_manifest
    from isthmus.data.shards.index import write_index
    from isthmus.data.shards.manifest import (
        BLOCK_BYTES,
        FileRecord,
        ShardManifest,
        record_file,
        write_dataset_manifest,
        write_shard_manifest,
    )

    tokens = LARGE_TOKENS // LARGE_SHARDS
    for dataset in range(5):
        inside = folder / f"set{dataset}"
        inside.mkdir(parents=True)
        shards = []
        for number in range(LARGE_SHARDS // 5):
            name = f"set{dataset}-{number:05d}"
            with (inside / f"{name}.bin").open("wb") as file:
                file.truncate(tokens * 2)
            lengths = np.full(1_000, tokens // 1_000, dtype=np.int32)
            write_index(inside / f"{name}.idx", np.dtype("<u2"), lengths)
            blocks = [f"{number:064x}"] * (-(-tokens * 2 // BLOCK_BYTES))
            records = [FileRecord(f"{name}.bin", tokens * 2, blocks), record_file(inside / f"{name}.idx")]
            shards.append(ShardManifest(name, f"set{dataset}", len(lengths), tokens, "uint16", records))
            write_shard_manifest(inside, shards[-1])
        tokenizer = {"name": "none", "sha256": "0", "size": VOCABULARY, "end": 0}
        write_dataset_manifest(inside, dataset_manifest(shards, config="", tokenizer=tokenizer))


def write_many(folder: Path, count: int = 40) -> None:
    """Write small shards for Megatron's builders, which take one dataset a file."""
    for number in range(count):
        write_shard(folder / f"part-{number}", np.full(500, 1_000, dtype=np.int32), np.ones(500_000, dtype="<u2"))


def small_samples(folder: Path) -> Iterator[np.ndarray]:
    """Yield what `write_small` wrote in samples of LENGTH tokens, for peers with formats of their own."""
    for number in range(8):
        content = np.fromfile(folder / f"small/part-{number}.bin", dtype="<u2")
        yield from content[: len(content) // LENGTH * LENGTH].reshape(-1, LENGTH)
