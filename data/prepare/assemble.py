"""Last stage, one shard: the tokens of its units in a row, index, lineage, and a manifest when all is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.data.extras import need
from isthmus.data.prepare.folder import WorkFolder
from isthmus.data.shards.index import write_index
from isthmus.data.shards.lineage import SUFFIX, lineage_schema
from isthmus.data.shards.manifest import (
    SHARD_SUFFIX,
    ShardManifest,
    read_shard_manifest,
    record_file,
    write_shard_manifest,
)
from isthmus.data.shards.packing import with_packing, write_packing
from isthmus.data.shards.shard import bin_path, idx_path
from isthmus.errors import UserError
from isthmus.files import new_file

_COPY_BYTES = 1 << 22
_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Span:
    """The documents [start, stop) of a unit."""

    unit: str
    start: int
    stop: int


@dataclass(frozen=True)
class ShardPlan:
    name: str
    source: str
    spans: tuple[Span, ...]


def plan_shards(source: str, units: Sequence[str], folder: WorkFolder, shard_tokens: int) -> list[ShardPlan]:
    """Cut a source's documents, in order, into shards of at most `shard_tokens` (one document at least)."""
    shards: list[list[Span]] = []
    filled = shard_tokens + 1
    for unit in units:
        lengths = read_lengths(folder, unit)
        start = 0
        ends = np.cumsum(lengths, dtype=np.int64)
        while start < len(lengths):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + shard_tokens - filled, side="right"))
            if filled > shard_tokens or stop <= start:
                shards.append([])
                filled = 0
                stop = max(start + 1, int(np.searchsorted(ends, before + shard_tokens, side="right")))
            shards[-1].append(Span(unit, start, stop))
            filled += int(ends[stop - 1]) - before
            start = stop
    return [ShardPlan(f"{source}-{number:05d}", source, tuple(spans)) for number, spans in enumerate(shards)]


def read_lengths(folder: WorkFolder, unit: str) -> NDArray[np.int32]:
    return np.fromfile(folder.tokens / f"{unit}.lengths", dtype="<i4")


def finished_shard(folder: WorkFolder, plan: ShardPlan) -> ShardManifest | None:
    """Return the manifest of a shard that was written before, or None."""
    path = folder.out / f"{plan.name}{SHARD_SUFFIX}"
    try:
        return read_shard_manifest(path) if path.exists() else None
    except UserError:
        return None


def assemble_shard(plan: ShardPlan, folder: WorkFolder, dtype: np.dtype, pack: Sequence[int]) -> None:
    """Write one shard, with a table of packed windows for each sequence length of `pack`; its manifest is last."""
    prefix = folder.out / plan.name
    lengths = []
    with new_file(bin_path(prefix)) as tokens:
        for span in plan.spans:
            unit_lengths = read_lengths(folder, span.unit)
            ends = np.concatenate([[0], np.cumsum(unit_lengths, dtype=np.int64)]) * dtype.itemsize
            _copy(folder.tokens / f"{span.unit}.bin", int(ends[span.start]), int(ends[span.stop]), tokens)
            lengths.append(unit_lengths[span.start : span.stop])
    joined = np.concatenate(lengths) if lengths else np.zeros(0, dtype="<i4")
    write_index(idx_path(prefix), dtype, joined)
    lineage = prefix.with_name(prefix.name + SUFFIX)
    with new_file(lineage) as file:
        _copy_lineage(plan, folder, file)
    files = [record_file(path) for path in (bin_path(prefix), idx_path(prefix), lineage)]
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(joined, dtype=np.int64)])
    manifest = ShardManifest(plan.name, plan.source, len(joined), int(starts[-1]), dtype.name, files)
    for length in pack:
        manifest = with_packing(manifest, *write_packing(folder.out, plan.name, starts, length))
    write_shard_manifest(folder.out, manifest)


def _copy(path: Path, start: int, stop: int, target: Any) -> None:
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            part = file.read(min(_COPY_BYTES, stop - start))
            if not part:
                raise UserError(
                    "was truncated", where=str(path), fix="delete the work folder and prepare the data anew"
                )
            target.write(part)
            start += len(part)


def _copy_lineage(plan: ShardPlan, folder: WorkFolder, file: Any) -> None:
    """Copy rows in groups of an even size, so that the file does not depend on how units were cut into batches."""
    pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    writer = parquet.ParquetWriter(file, lineage_schema(), compression="zstd")
    waiting: list[Any] = []
    rows = 0
    for span in plan.spans:
        at = 0
        for batch in parquet.ParquetFile(folder.tokens / f"{span.unit}.lineage").iter_batches(1_000):
            first, last = max(0, span.start - at), min(len(batch), span.stop - at)
            at += len(batch)
            if first >= last:
                continue
            waiting.append(batch.slice(first, last - first))
            rows += last - first
            while rows >= _ROWS_AT_ONCE:
                table = pyarrow.Table.from_batches(waiting, schema=lineage_schema()).combine_chunks()
                writer.write_table(table.slice(0, _ROWS_AT_ONCE))
                waiting = table.slice(_ROWS_AT_ONCE).to_batches()
                rows -= _ROWS_AT_ONCE
    if rows:
        writer.write_table(pyarrow.Table.from_batches(waiting, schema=lineage_schema()).combine_chunks())
    writer.close()
