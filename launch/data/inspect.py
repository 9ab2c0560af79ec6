"""`isthmus data inspect`: counts, lineage and text of a dataset's documents."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from isthmus.data.shards.dataset import Dataset
from isthmus.data.tokenizers import TextTokenizer, load_text_tokenizer
from isthmus.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from isthmus.launch.words import Words
from isthmus.units import format_count

_USAGE = """\
isthmus data inspect DIR [--sample N] [--verify] [tokenizer=FILE] [--json]

Show what a dataset holds.

Options:
  --sample N       show N documents, chosen by their numbers' hashes, with lineage and text
  --verify         read every file and compare it with its hashes; exit code 2 if one is damaged
  tokenizer=FILE   the tokenizer that made the tokens (default: tokenizer.json beside the manifest)
  --json           print one JSON object on standard output
"""
_LONGEST_TEXT = 1_000  # characters shown


def main(argv: Sequence[str]) -> int:
    """Print a dataset's shards, and documents of it.

    Raises:
        UserError: the folder holds no dataset, or the tokenizer does not fit.
    """
    words = Words(argv, verb="data inspect", flags=("--verify", "--json"), options=("--sample",))
    if words.help:
        print(_USAGE, end="")
        return EXIT_OK
    settings = words.settings(["tokenizer"])
    if len(words.rest) != 1:
        raise UserError("give one folder", where="data inspect", fix="isthmus data inspect DIR [--sample 5]")
    sample = words.number("--sample", 0)
    dataset = Dataset(Path(words.rest[0]).expanduser())
    console = Console(stderr=words.flag("--json"))
    documents = [_describe(dataset, number) for number in _chosen(dataset.documents, sample)]
    if documents:
        tokenizer = _tokenizer(dataset, settings.get("tokenizer"))
        for document in documents:
            document["text"] = tokenizer.decode(document.pop("ids")) if tokenizer else None
    damaged = list(dataset.damaged()) if words.flag("--verify") else []
    console.print(_shards_table(dataset))
    for document in documents:
        _show(console, document)
    for line in damaged:
        print(f"isthmus: {line}", file=sys.stderr)
    if words.flag("--verify") and not damaged:
        console.print("every file is what the manifests say", highlight=False)
    if words.flag("--json"):
        summary = {"documents": dataset.documents, "tokens": dataset.tokens, "sources": dataset.manifest.sources}
        print(json.dumps({**summary, "sample": documents, "damaged": damaged}, default=_plain))
    return EXIT_USER_ERROR if damaged else EXIT_OK


def _chosen(documents: int, count: int) -> list[int]:
    """Spread the choice over the dataset: one from each of `count` equal parts, by hash."""
    count = min(count, documents)
    chosen = []
    for part in range(count):
        first, last = documents * part // count, documents * (part + 1) // count
        digest = hashlib.blake2b(f"{part}/{count}/{documents}".encode(), digest_size=8).digest()
        chosen.append(first + int.from_bytes(digest, "little") % (last - first))
    return chosen


def _describe(dataset: Dataset, number: int) -> dict[str, Any]:
    document = dataset.document(number)
    lineage = {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in document.lineage.items()
        if value not in ("", None)
    }
    if "about" in lineage:
        lineage["about"] = json.loads(lineage["about"])
    return {
        "number": number,
        "shard": document.shard,
        "tokens": len(document.tokens),
        "lineage": lineage,
        "ids": document.tokens.tolist(),
    }


def _tokenizer(dataset: Dataset, path: str | None) -> TextTokenizer | None:
    known = dataset.manifest.tokenizer
    name = str(known.get("name", ""))
    beside = dataset.folder / f"tokenizer{Path(name).suffix}"
    if path is None and name.startswith("tiktoken:"):
        path = name
    if path is None and not beside.is_file():
        return None
    tokenizer = load_text_tokenizer(path or str(beside))
    if known.get("sha256") and tokenizer.hash != known["sha256"]:
        raise UserError("did not make these tokens", where=f"tokenizer={path}", fix=f"give {name}")
    return tokenizer


def _shards_table(dataset: Dataset) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("shard", "source", "documents", "tokens"):
        table.add_column(name, justify="left" if name in ("shard", "source") else "right")
    for shard in dataset.shards:
        table.add_row(shard.name, shard.source, f"{shard.documents:,}", f"{shard.tokens:,}")
    table.add_row("all", "", f"{dataset.documents:,}", format_count(dataset.tokens))
    return table


def _show(console: Console, document: dict[str, Any]) -> None:
    console.rule(f"document {document['number']} of {document['shard']}, {document['tokens']} tokens")
    for name, value in document["lineage"].items():
        console.print(f"{name}: {value}", highlight=False, markup=False)
    text = document["text"]
    shown = "(give tokenizer=FILE to see the text)" if text is None else text[:_LONGEST_TEXT]
    console.print(f"\n{shown}", highlight=False, markup=False)


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)
