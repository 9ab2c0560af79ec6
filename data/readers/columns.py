"""Parquet files with a text column, as FineWeb ships them."""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from isthmus.data.extras import need
from isthmus.data.readers.jsonl import text_record
from isthmus.data.readers.records import Limits, Record, Reject, utf8

_BATCH_ROWS = 256


def row_groups(raw: BinaryIO) -> int:
    """Return the number of row groups, 1 for a file that cannot be read (its reader will say why)."""
    try:
        return max(1, int(need("pyarrow.parquet").ParquetFile(raw).num_row_groups))
    except _errors():
        return 1


def read_parquet(
    raw: BinaryIO,
    file: str,
    limits: Limits,
    *,
    text_field: str = "text",
    about_fields: Sequence[str] = (),
    groups: tuple[int, int] | None = None,
) -> Iterator[Record | Reject]:
    """Yield the rows of the row groups [first, last); offsets are row numbers of the file."""
    try:
        parquet = need("pyarrow.parquet").ParquetFile(raw)
        names = set(parquet.schema_arrow.names)
    except _errors() as error:
        yield Reject(file, 0, f"corrupt parquet: {_short(error)}")
        return
    if text_field not in names:
        yield Reject(file, 0, f"no column '{text_field}'", parquet.metadata.num_rows or 1)
        return
    columns = [name for name in (text_field, *about_fields, "url", "uri", "source_url") if name in names]
    first_row = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if groups is None or groups[0] <= group < groups[1]:
            yield from _read_group(parquet, file, group, first_row, columns, text_field, about_fields, limits)
        first_row += rows


def _read_group(
    parquet: Any,
    file: str,
    group: int,
    first_row: int,
    columns: Sequence[str],
    text_field: str,
    about_fields: Sequence[str],
    limits: Limits,
) -> Iterator[Record | Reject]:
    pyarrow = need("pyarrow")
    rows = parquet.metadata.row_group(group).num_rows
    row = first_row
    try:
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(columns)):
            texts = batch.column(text_field)
            if pyarrow.types.is_string(texts.type) or pyarrow.types.is_large_string(texts.type):
                # As bytes: a string that is no UTF-8 would fail its whole batch.
                texts = texts.cast(pyarrow.large_binary())
            others = (
                [{} for _ in range(len(texts))] if len(columns) == 1 else batch.drop_columns([text_field]).to_pylist()
            )
            for content, about in zip(texts, others, strict=True):
                yield _row(content.as_py(), file, row, about, about_fields, limits, text_field)
                row += 1
    except _errors() as error:
        yield Reject(file, row, f"corrupt parquet: {_short(error)}", max(1, first_row + rows - row))


def _row(
    content: Any, file: str, row: int, about: dict[str, Any], about_fields: Sequence[str], limits: Limits, field: str
) -> Record | Reject:
    if not isinstance(content, bytes):
        return Reject(file, row, f"no text in the column '{field}'")
    if len(content) > limits.record_bytes:
        return Reject(file, row, f"a text of more than {limits.record_bytes} bytes")
    try:
        return text_record(utf8(content), file, row, about, about_fields)
    except ValueError as error:
        return Reject(file, row, str(error))


def _errors() -> tuple[type[BaseException], ...]:
    # pyarrow raises OSError for bad pages, and ValueError (ArrowInvalid) for the rest; a failing store is an OSError
    # too, but then the next read fails as well and the file's rejects exceed the limit.
    return (need("pyarrow").ArrowException, OSError, ValueError, UnicodeDecodeError)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
