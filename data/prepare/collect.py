"""First stage, one unit: read, extract, filter; the documents that remain and all that later stages need of them."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.dedup.keys import KeyWriter
from isthmus.data.dedup.signatures import MinHasher
from isthmus.data.extras import need
from isthmus.data.prepare.config import PrepareData
from isthmus.data.prepare.documents import Document, Dropped, Shared, build_chain, content_hash, warm_up
from isthmus.data.prepare.folder import WorkFolder
from isthmus.data.prepare.guard import Guard
from isthmus.data.prepare.reading import RecordReader
from isthmus.data.prepare.statistics import Statistics
from isthmus.data.prepare.units import Unit
from isthmus.data.readers.records import Record, Reject
from isthmus.data.shards.lineage import lineage_schema
from isthmus.data.transcripts.document import BadCaptions
from isthmus.files import new_file, write_atomically

_ROWS_AT_ONCE = 500
_BYTES_AT_ONCE = 16_000_000
_SEEN_BYTES = 1 << 23
BACKSTOP_RULE = "backstop.cpu"


def minhasher(config: PrepareData) -> MinHasher | None:
    dedup = config.dedup
    return MinHasher(bands=dedup.bands, rows=dedup.rows, ngram=dedup.ngram) if dedup.minhash else None


def collect_unit(
    unit: Unit,
    config: PrepareData,
    folder: WorkFolder,
    shared: Shared,
    guard: Guard,
    backstop: set[str],
    progress: Callable[[int, int], None],
) -> None:
    """Write the documents of a unit, and its summary last.

    Args:
        backstop: pages that ended a process before, by hash.
        progress: called with (documents, bytes) since the last call.
    """
    source = config.sources[unit.source]
    warm_up()
    chain = build_chain(unit.source, source, config, shared)
    statistics = Statistics(input_bytes=unit.bytes)
    watched = _WatchedPages(guard, backstop)
    reader = RecordReader(
        source,
        config.limits,
        shared.videos,
        keep_translations=config.transcripts.keep_translations,
        on_bytes=lambda count: progress(0, count),
        watch=watched,
    )
    prefix = folder.documents / unit.name
    writer = _DocumentWriter(prefix, minhasher(config))
    sampling = {"seed": config.seed, "samples": config.samples}

    def reject(entry: Reject) -> None:
        statistics.rejected += entry.records
        line = json.dumps({"source": unit.source, **asdict(entry)}, sort_keys=True) + "\n"
        rejects.write(line.encode("utf-8", "surrogatepass"))

    with new_file(prefix.with_suffix(".parquet")) as file, new_file(prefix.with_suffix(".rejects.jsonl")) as rejects:
        writer.open(file)
        for entry in reader.records(unit):
            if isinstance(entry, Reject):
                reject(entry)
                continue
            progress(1, 0)
            outcome = _outcome(entry, chain, watched)
            if isinstance(outcome, Reject):
                reject(outcome)
                continue
            statistics.records += 1
            if isinstance(outcome, Dropped):
                statistics.drop(outcome, **sampling)
            else:
                statistics.keep(outcome, size=len(outcome.text.encode()), **sampling)
                writer.add(outcome)
        writer.close()
    write_atomically(prefix.with_suffix(".seen"), watched.seen())
    summary = {"documents": writer.documents, "statistics": asdict(statistics), "backstopped": sorted(watched.dropped)}
    folder.finish(folder.documents, unit.name, summary)


def _outcome(
    record: Record, chain: Callable[[Record], Document | Dropped], watched: "_WatchedPages"
) -> Document | Dropped | Reject:
    page = content_hash(record)
    if not watched.begins(page):
        return Dropped(BACKSTOP_RULE, record)
    try:
        with watched.watch(page):
            return chain(record)
    except BadCaptions as error:
        return Reject(record.file, record.offset, f"corrupt captions: {error}")


class _WatchedPages:
    """The pages and segments of a unit under the backstop: which of them are dropped, and which there were at all."""

    def __init__(self, guard: Guard, backstop: set[str]) -> None:
        self._guard, self._backstop = guard, backstop
        self._sorted = np.zeros(0, dtype="<u8")
        self._waiting = bytearray()
        self.dropped: set[str] = set()

    def begins(self, page: bytes) -> bool:
        """Remember a page, and say whether to work on it."""
        self._waiting += page[:8]
        if len(self._waiting) >= _SEEN_BYTES:
            self.seen()
        if page.hex() in self._backstop:
            self.dropped.add(page.hex())
            return False
        return True

    def watch(self, page: bytes) -> AbstractContextManager[None]:
        return self._guard.watch(page)

    def seen(self) -> bytes:
        """Return the first eight bytes of every hash, sorted, each once."""
        waiting = np.frombuffer(bytes(self._waiting), dtype="<u8")
        self._sorted = np.unique(np.concatenate([self._sorted, waiting])).astype("<u8")
        self._waiting.clear()
        return self._sorted.tobytes()


class _DocumentWriter:
    """Gathers documents into row groups of a parquet file, and their keys."""

    def __init__(self, prefix: Path, hasher: MinHasher | None) -> None:
        self._hasher = hasher
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._keys = KeyWriter(prefix, hasher)
        self._writer: Any = None

    @property
    def documents(self) -> int:
        return self._keys.count

    def open(self, file: Any) -> None:
        self._writer = need("pyarrow.parquet").ParquetWriter(file, _schema(), compression="zstd", compression_level=1)

    def add(self, document: Document) -> None:
        signature = self._hasher.signature(document.compared) if self._hasher else None
        self._keys.add(document.identity, document.text_hash, signature)
        self._rows.append(
            {
                "document": document.identity,
                "text": document.text,
                "page": document.page,
                "file": document.file,
                "offset": document.offset,
                "url": document.url,
                "licence": document.licence,
                "language": document.language,
                "language_score": document.language_score,
                "about": json.dumps(document.about, sort_keys=True),
            }
        )
        self._bytes += len(document.text)
        if len(self._rows) >= _ROWS_AT_ONCE or self._bytes >= _BYTES_AT_ONCE:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        self._keys.close()

    def _flush(self) -> None:
        if self._rows:
            table = need("pyarrow").Table.from_pylist(self._rows, schema=_schema())
            self._writer.write_table(table)
        self._rows, self._bytes = [], 0


def _schema() -> Any:
    pyarrow = need("pyarrow")
    lineage = lineage_schema()
    kept = ("page", "file", "offset", "url", "licence", "language", "language_score", "about")
    text = pyarrow.field("text", pyarrow.large_string())
    return pyarrow.schema([lineage.field("document"), text, *(lineage.field(name) for name in kept)])
