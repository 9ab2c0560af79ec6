"""`isthmus data prepare`."""

import json
import signal
from collections.abc import Sequence

from rich.console import Console

from isthmus.config import compose, keys_of, to_yaml
from isthmus.data.prepare.config import PrepareConfig, PrepareSource
from isthmus.data.prepare.pipeline import Outcome, prepare
from isthmus.data.prepare.progress import Progress
from isthmus.data.prepare.table import funnel, result_table, whole
from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.words import Words
from isthmus.units import format_count

_USAGE = """\
isthmus data prepare data=FILE.yaml out=DIR [workers=N] [KEY=VALUE] ...

Turn web archives, transcripts and texts into Megatron shards with lineage. Interrupt it anywhere: the same command goes
on, and the result is the same to the last bit, with any number of workers. FILE.yaml names sources and tokenizer:

  sources:
    crawl: {kind: web, path: "crawl/*.warc.gz"}
    talks: {kind: transcripts, path: talks/, metadata: talks.jsonl}
  tokenizer: {path: tokenizer.json}

Options:
  --print-config   print the composed configuration and end
  --json           print one JSON object on standard output at the end, everything else on standard error
  --help           print this

"""


def main(argv: Sequence[str]) -> int:
    """Compose, prepare, and print what became of every record.

    Raises:
        UserError: the configuration or the input is wrong.
        KeyboardInterrupt: the user stopped it.
    """
    words = Words(argv, flags=("--json", "--print-config"), verb="data prepare")
    if words.help:
        _print_help()
        return EXIT_OK
    if not any(word.startswith("data=") for word in words.rest):
        raise UserError("is not given", where="data=", fix="name a file with your sources: data=FILE.yaml")
    if any(word.startswith("data=") and not word.endswith((".yaml", ".yml")) for word in words.rest):
        raise UserError("is no file of sources", where="data=", fix="name a YAML file: data=FILE.yaml")
    config = compose(PrepareConfig, "prepare", words.rest)
    if words.flag("--print-config"):
        print(to_yaml(config), end="")
        return EXIT_OK
    as_json = words.flag("--json")
    console = Console(stderr=as_json)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcome = prepare(config, Progress(console))
    if outcome.already:
        console.print("it was there already: the same configuration, tool and input", highlight=False)
    console.print(result_table(outcome.sources))
    console.print(
        f"{format_count(outcome.documents)} documents, {format_count(outcome.tokens)} tokens in {outcome.shards} "
        f"shard(s) in {outcome.folder}; report.html shows what was dropped",
        highlight=False,
    )
    for length, fill in outcome.packed.items():
        console.print(f"samples of {length} tokens, packed of whole documents, are {fill:.2%} full", highlight=False)
    if as_json:
        print(json.dumps(_plain(outcome)))
    return EXIT_OK


def _plain(outcome: Outcome) -> dict[str, object]:
    total = whole(outcome.sources)
    return {
        "folder": str(outcome.folder),
        "documents": outcome.documents,
        "tokens": outcome.tokens,
        "shards": outcome.shards,
        "already": outcome.already,
        "packed": outcome.packed,
        "records": total.records,
        "rejected": total.rejected,
        "dropped": {rule: count for step in funnel(total) for rule, count in step.rules.items()},
        "sources": {
            name: {"records": entry.records, "kept": entry.kept, "tokens": entry.tokens, "rejected": entry.rejected}
            for name, entry in outcome.sources.items()
        },
    }


def _print_help() -> None:
    print(_USAGE, end="")
    print("Keys (default): meaning")
    for name, default, meaning in keys_of(PrepareConfig):
        print(f"  {name} ({default}): {meaning}")
        if name == "data.sources":
            for key_name, key_default, key_meaning in keys_of(PrepareSource):
                print(f"    data.sources.NAME.{key_name} ({key_default}): {key_meaning}")
