"""`isthmus data import`: Megatron datasets, described where they lie."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from isthmus.data.shards.imports import expand_prefixes, import_shards
from isthmus.data.tokenizers import describe, load_text_tokenizer
from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.words import Words
from isthmus.units import format_count

_USAGE = """\
isthmus data import PREFIX|FILE|FOLDER ... out=DIR [source=NAME] [tokenizer=FILE] [--json]

Check and hash Megatron's .bin and .idx files and write manifests into DIR. The files stay where they are; the
manifests name them by relative path.

Keys:
  out=DIR          folder of the manifests
  source=NAME      name of the source (imported)
  tokenizer=FILE   the tokenizer that made the tokens, so that `inspect` can show text
"""


def main(argv: Sequence[str]) -> int:
    """Import datasets.

    Raises:
        UserError: a file is missing or damaged, or `out` is not given or taken.
    """
    words = Words(argv, verb="data import", flags=("--json",))
    if words.help:
        print(_USAGE, end="")
        return EXIT_OK
    settings = words.settings(["out", "source", "tokenizer"])
    if "out" not in settings:
        raise UserError("is not given", where="out", fix="give the folder of the manifests: out=DIR")
    tokenizer = load_text_tokenizer(settings["tokenizer"]) if "tokenizer" in settings else None
    manifest = import_shards(
        expand_prefixes(words.rest),
        Path(settings["out"]).expanduser(),
        source=settings.get("source", "imported"),
        tokenizer=describe(tokenizer) if tokenizer else {},
    )
    counts = {
        name: sum(source[name] for source in manifest.sources.values()) for name in ("documents", "tokens", "shards")
    }
    Console(stderr=words.flag("--json")).print(
        f"{format_count(counts['documents'])} documents, {format_count(counts['tokens'])} tokens in {counts['shards']} "
        f"shard(s) are described in {settings['out']}",
        highlight=False,
    )
    if words.flag("--json"):
        print(json.dumps({"folder": settings["out"], **counts}))
    return EXIT_OK
