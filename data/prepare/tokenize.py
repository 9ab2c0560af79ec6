"""Third stage, one unit: the tokens of the documents that survived, in order, and their lineage."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from isthmus.data.dedup.components import EXACT, KEPT, NEAR
from isthmus.data.extras import need
from isthmus.data.prepare.folder import WorkFolder
from isthmus.data.prepare.statistics import Statistics
from isthmus.data.prepare.units import Unit
from isthmus.data.shards.index import token_dtype
from isthmus.data.shards.lineage import lineage_schema
from isthmus.data.tokenizers import TextTokenizer
from isthmus.files import new_file, write_atomically

_BATCH_CHARACTERS = 1_000_000
_FATES = {EXACT: "dedup.exact", NEAR: "dedup.near"}


def tokenize_unit(
    unit: Unit,
    start: int,
    stop: int,
    folder: WorkFolder,
    tokenizer: TextTokenizer,
    seed: int,
    samples: int,
    progress: Callable[[int, int], None],
) -> None:
    """Write tokens, lengths and lineage of a unit's survivors; the summary is last.

    Args:
        start, stop: numbers of the unit's documents among those of all units.
    """
    fates = np.load(folder.dedup / "fates.npy", mmap_mode="r")
    copies = _copies(folder, start, stop)
    dtype = token_dtype(tokenizer.size)
    prefix = folder.tokens / unit.name
    parquet = need("pyarrow.parquet")
    lengths: list[int] = []
    statistics = Statistics()
    number = start
    with new_file(prefix.with_suffix(".bin")) as tokens, new_file(prefix.with_suffix(".lineage")) as lineage:
        writer = parquet.ParquetWriter(lineage, lineage_schema(), compression="zstd")
        for rows in _batches(folder, unit):
            survivors = []
            for row in rows:
                fate = int(fates[number])
                if fate == KEPT:
                    survivors.append({**row, "duplicates": copies.get(number, 0)})
                else:
                    rule, text = _FATES[fate], row["text"]
                    statistics.count_drop(rule, 1, len(text.encode()))
                    statistics.sample(rule, row["file"], row["offset"], row["url"], text, seed=seed, samples=samples)
                number += 1
            encoded = tokenizer.encode([row["text"] for row in survivors])
            for row, ids in zip(survivors, encoded, strict=True):
                document = np.append(ids, np.int32(tokenizer.end))
                tokens.write(document.astype(dtype).tobytes())
                lengths.append(len(document))
                row["tokens"] = len(document)
            _write_lineage(writer, survivors, unit.source)
            statistics.kept += len(survivors)
            statistics.kept_bytes += sum(len(row["text"].encode()) for row in survivors)
            progress(len(rows), sum(row["tokens"] for row in survivors))
        writer.close()
    statistics.tokens = sum(lengths)
    write_atomically(prefix.with_suffix(".lengths"), np.array(lengths, dtype="<i4").tobytes())
    folder.finish(folder.tokens, unit.name, {"documents": len(lengths), "statistics": asdict(statistics)})


def _batches(folder: WorkFolder, unit: Unit) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of a unit's documents, about a megabyte at once."""
    file = need("pyarrow.parquet").ParquetFile(folder.documents / f"{unit.name}.parquet")
    rows: list[dict[str, Any]] = []
    size = 0
    for group in file.iter_batches(64):
        for row in group.to_pylist():
            rows.append(row)
            size += len(row["text"])
            if size >= _BATCH_CHARACTERS:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def _write_lineage(writer: Any, rows: list[dict[str, Any]], source: str) -> None:
    if not rows:
        return
    described = [
        {
            **{name: value for name, value in row.items() if name != "text"},
            "source": source,
            "characters": len(row["text"]),
        }
        for row in rows
    ]
    writer.write_table(need("pyarrow").Table.from_pylist(described, schema=lineage_schema()))


def _copies(folder: WorkFolder, start: int, stop: int) -> dict[int, int]:
    pairs = np.load(folder.dedup / "copies.npy", mmap_mode="r")
    mine = pairs[np.searchsorted(pairs[:, 0], start) : np.searchsorted(pairs[:, 0], stop)]
    return {int(number): int(count) for number, count in mine}
