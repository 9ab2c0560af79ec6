"""The table of a shard's packed windows: written when data is prepared, read a window at a time in training.

A file SHARD.LENGTH.pack, little-endian: 8 bytes of magic, u32 version, u32 sequence length, u64 windows, u64 pieces;
for each window and one more the int64 number of its first piece; for each piece its first token in the shard (int64)
and its tokens (int32). Windows are numbered by the first of their documents.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from isthmus.data.shards.best_fit import Numbers, best_fit, cut
from isthmus.data.shards.dataset import Dataset
from isthmus.data.shards.manifest import (
    FileRecord,
    Packing,
    ShardManifest,
    listed,
    record_file,
    write_dataset_manifest,
    write_shard_manifest,
)
from isthmus.errors import UserError
from isthmus.files import new_file

HEADER = struct.Struct("<8sIIQQ")
MAGIC, VERSION = b"ISTHPACK", 1
PIECE = np.dtype([("first", "<i8"), ("tokens", "<i4")])
# What is packed together: enough for windows to be full, little enough that a window's documents lie near each other.
_REGION_TOKENS, _REGION_WINDOWS = 2**26, 4_096


def capacity(sequence_length: int) -> int:
    """Return the tokens of a window: each is fed to the model but the last, each is foretold but the first."""
    return sequence_length + 1


def write_packing(folder: Path, shard: str, starts: Numbers, sequence_length: int) -> tuple[Packing, FileRecord]:
    """Pack a shard's documents and write the table.

    Args:
        starts: first token of each document, and the end of the last.
    """
    windows, pieces = [np.zeros(1, dtype="<i8")], [np.zeros(0, dtype=PIECE)]
    for counts, region in _regions(starts, capacity(sequence_length)):
        windows.append(counts)
        pieces.append(region)
    counts, table = np.concatenate(windows), np.concatenate(pieces)
    path = folder / f"{shard}.{sequence_length}.pack"
    with new_file(path) as file:
        file.write(HEADER.pack(MAGIC, VERSION, sequence_length, len(counts) - 1, len(table)))
        file.write(np.cumsum(counts, dtype="<i8").tobytes())
        file.write(table.tobytes())
    tokens = int(table["tokens"].sum(dtype=np.int64))
    return Packing(sequence_length, path.name, len(counts) - 1, len(table), tokens), record_file(path)


def _regions(starts: Numbers, size: int) -> Iterator[tuple[Numbers, np.ndarray]]:
    """Yield, for each region of a shard, the number of pieces of each of its windows, and the pieces in their order."""
    first, tokens = cut(starts, size)
    region = max(_REGION_TOKENS, _REGION_WINDOWS * size)
    bounds = np.searchsorted(first, np.arange(0, int(starts[-1]) + region, region)).tolist()
    for begin, end in pairwise(bounds):
        if begin == end:
            continue
        window = best_fit(tokens[begin:end], size)
        _, earliest, number = np.unique(window, return_index=True, return_inverse=True)
        place = np.empty(len(earliest), dtype=np.int64)
        place[np.argsort(earliest)] = np.arange(len(earliest))
        window = place[number]
        order = np.argsort(window, kind="stable")
        pieces = np.empty(end - begin, dtype=PIECE)
        pieces["first"], pieces["tokens"] = first[begin:end][order], tokens[begin:end][order]
        yield np.bincount(window).astype("<i8"), pieces


def pack_dataset(
    folder: Path, sequence_length: int, tell: Callable[[str], None] = lambda name: None
) -> list[ShardManifest]:
    """Write the table of every shard of a dataset that has none of this length, and enter it in the manifests.

    Raises:
        UserError: there is no dataset, it cannot be written, or its index does not fit its tokens.
    """
    dataset, found = Dataset(folder), []
    for shard in dataset.shards:
        packing = shard.packing(sequence_length)
        if packing is None or not (folder / packing.name).is_file():
            with dataset.open(shard) as opened:
                starts = opened.index.document_starts()
                if not opened.index.contiguous or int(starts[-1]) != shard.tokens:
                    raise UserError(
                        f"its documents overlap, leave gaps or are not the {shard.tokens} tokens of its manifest",
                        where=str(opened.idx_path),
                        fix="write it anew with Megatron's own tools, and import that",
                    )
            try:
                packing, record = write_packing(folder, shard.name, starts, sequence_length)
            except OSError as error:
                raise UserError(f"cannot be written: {error.strerror}", where=str(folder), fix="make room") from None
            shard = with_packing(shard, packing, record)
            write_shard_manifest(folder, shard)
            tell(shard.name)
        found.append(shard)
    write_dataset_manifest(folder, replace(dataset.manifest, shards=[listed(shard) for shard in found]))
    return found


def with_packing(shard: ShardManifest, packing: Packing, record: FileRecord) -> ShardManifest:
    """Return a manifest with a table in it, in the place of an earlier one of that name."""
    files = [*(file for file in shard.files if file.name != record.name), record]
    others = [entry for entry in shard.packings if entry.sequence_length != packing.sequence_length]
    packings = sorted([*others, packing], key=lambda entry: entry.sequence_length)
    return replace(shard, files=files, packings=packings)


def fills(shards: Sequence[ShardManifest]) -> dict[int, float]:
    """Return, by sequence length, which part of the packed windows is tokens and not padding."""
    packings = [packing for shard in shards for packing in shard.packings]
    windows: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    for packing in packings:
        windows[packing.sequence_length] += packing.windows
        tokens[packing.sequence_length] += packing.tokens
    return {length: tokens[length] / (capacity(length) * count) for length, count in sorted(windows.items()) if count}
