"""`isthmus data tokenizer`: train the byte-level BPE on your own text."""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console

from isthmus.data.prepare.config import LimitsConfig, PrepareData, PrepareSource
from isthmus.data.prepare.reading import RecordReader
from isthmus.data.prepare.units import plan_units, source_files
from isthmus.data.readers.records import Record
from isthmus.data.shards.dataset import Dataset
from isthmus.data.tokenizer import train
from isthmus.data.tokenizers import load_text_tokenizer
from isthmus.errors import EXIT_OK, UserError
from isthmus.files import write_atomically
from isthmus.launch.words import Words
from isthmus.units import format_bytes

_USAGE = """\
isthmus data tokenizer out=FILE.json text=PATH [vocab_size=32768] [max_bytes=2000000000] [--json]

Train a byte-level BPE on text: files, a folder or a glob of .txt, .md, .jsonl, .parquet (compressed or not), or a
dataset that `isthmus data prepare` wrote (with tokenizer=FILE, the tokenizer that made it).

Keys:
  out=FILE.json    the tokenizer to write; its end-of-document token is <|endofdocument|>
  text=PATH        what to train on
  field=NAME       field or column of the text (text)
  vocab_size=N     entries, at most (32768)
  max_bytes=N      train on so many bytes from the beginning (2000000000)
"""


def main(argv: Sequence[str]) -> int:
    """Train a tokenizer.

    Raises:
        UserError: a key is missing or wrong, or there is no text.
    """
    words = Words(argv, verb="data tokenizer", flags=("--json",))
    if words.help:
        print(_USAGE, end="")
        return EXIT_OK
    settings = words.settings(["out", "text", "field", "vocab_size", "max_bytes", "tokenizer"])
    for name in ("out", "text"):
        if name not in settings:
            raise UserError("is not given", where=name, fix="`isthmus data tokenizer --help` shows how")
    if words.rest:
        raise UserError("means nothing here", where=words.rest[0], fix="write KEY=VALUE")
    out = Path(settings["out"]).expanduser()
    if out.suffix != ".json":
        raise UserError(f"is {out.name}", where="out", fix="name a .json file")
    size = _number(settings, "vocab_size", 32_768, lowest=257)
    budget = _Budget(_number(settings, "max_bytes", 2_000_000_000, lowest=1))
    trained = train(budget.take(_texts(settings)), size)
    if not budget.used:
        raise UserError("holds no text", where=f"text={settings['text']}", fix="give files with text")
    write_atomically(out, trained.to_str().encode())
    count = trained.get_vocab_size()
    Console(stderr=words.flag("--json")).print(
        f"{count} entries from {format_bytes(budget.used)} of text in {out}", highlight=False
    )
    if words.flag("--json"):
        print(json.dumps({"file": str(out), "entries": count, "bytes": budget.used}))
    return EXIT_OK


class _Budget:
    def __init__(self, limit: int) -> None:
        self._limit, self.used = limit, 0

    def take(self, texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            if self.used >= self._limit:
                return
            self.used += len(text.encode())
            yield text


def _texts(settings: dict[str, str]) -> Iterator[str]:
    path = Path(settings["text"]).expanduser()
    if (path / "manifest.json").is_file():
        yield from _dataset_texts(path, settings.get("tokenizer"))
        return
    source = PrepareSource(path=settings["text"], text_field=settings.get("field", "text"))
    config = PrepareData(sources={"text": source})
    reader = RecordReader(source, LimitsConfig(), {}, keep_translations=False, on_bytes=lambda count: None)
    for unit in plan_units({"text": source_files("text", source)}, config):
        for entry in reader.records(unit):
            if isinstance(entry, Record) and isinstance(entry.content, str):
                yield entry.content


def _dataset_texts(folder: Path, tokenizer: str | None) -> Iterator[str]:
    dataset = Dataset(folder)
    loaded = load_text_tokenizer(tokenizer)
    for shard in dataset.shards:
        with dataset.open(shard) as opened:
            for tokens in islice(opened.documents(), shard.documents):
                yield loaded.decode(tokens[:-1].tolist())


def _number(settings: dict[str, str], name: str, default: int, *, lowest: int) -> int:
    value = settings.get(name, str(default))
    if not value.isdigit() or int(value) < lowest:
        raise UserError(f"is {value}", where=name, fix=f"give a number from {lowest}")
    return int(value)
