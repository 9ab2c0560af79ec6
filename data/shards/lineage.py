"""Where every document came from: one parquet row for each, in the order of the shard."""

from pathlib import Path
from typing import Any

from isthmus.data.extras import need
from isthmus.data.shards.manifest import ShardManifest

SUFFIX = ".lineage.parquet"


def lineage_schema() -> Any:
    """Return the columns of a lineage file.

    `document` is the document's hash; `file` and `offset` say where it lay (a byte of the stored file, a row of a
    parquet file or the number of an archive's member); `page` is the hash of the bytes it was extracted from; `about`
    is JSON with what the source knew besides (title, channel, dates, scores, flags).
    """
    pyarrow = need("pyarrow")
    return pyarrow.schema(
        [
            ("document", pyarrow.binary(16)),
            ("source", pyarrow.string()),
            ("file", pyarrow.string()),
            ("offset", pyarrow.int64()),
            ("url", pyarrow.string()),
            ("licence", pyarrow.string()),
            ("language", pyarrow.string()),
            ("language_score", pyarrow.float32()),
            ("page", pyarrow.binary(16)),
            ("characters", pyarrow.int32()),
            ("duplicates", pyarrow.int32()),
            ("about", pyarrow.string()),
            ("tokens", pyarrow.int32()),
        ]
    )


def read_lineage(folder: Path, shard: ShardManifest, number: int) -> dict[str, Any]:
    """Return one document's row, or an empty dictionary where a shard has no lineage (imported data)."""
    names = [record.name for record in shard.files if record.name.endswith(SUFFIX)]
    return read_row(str(folder / names[0]), number) if names else {}


def read_row(location: str, number: int) -> dict[str, Any]:
    """Return a row of a lineage file, which may be a URL."""
    with need("fsspec").open(location, "rb") if "://" in location else open(location, "rb") as stored:
        file = need("pyarrow.parquet").ParquetFile(stored)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if number < rows:
                row: dict[str, Any] = file.read_row_group(group).slice(number, 1).to_pylist()[0]
                return row
            number -= rows
    raise IndexError(f"{location} has too few rows")
