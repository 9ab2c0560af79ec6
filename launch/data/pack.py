"""`isthmus data pack`: the table of packed windows, added to a dataset."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from isthmus.data.shards.packing import fills, pack_dataset
from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.words import Words
from isthmus.units import format_count

_USAGE = """\
isthmus data pack DIR sequence_length=N [--json]

Pack the documents of a prepared or imported dataset into samples of N tokens, as full as can be without cutting a
document that fits (Best-fit Packing, arXiv 2404.10830), and write where they are. The shards stay as they are; training
uses the table with data.packing=best_fit. A dataset can have tables for several lengths.
"""


def main(argv: Sequence[str]) -> int:
    """Pack a dataset and print how full its windows are.

    Raises:
        UserError: there is no dataset, or it cannot be written.
    """
    words = Words(argv, verb="data pack", flags=("--json",))
    if words.help:
        print(_USAGE, end="")
        return EXIT_OK
    given = words.settings(["sequence_length"]).get("sequence_length", "")
    if len(words.rest) != 1:
        raise UserError("give one folder", where="data pack", fix="isthmus data pack DIR sequence_length=N")
    if not given.isdigit() or int(given) < 1:
        raise UserError(f"is '{given}'", where="sequence_length", fix="give the train.sequence_length of your runs")
    length = int(given)
    console = Console(stderr=words.flag("--json"))
    shards = pack_dataset(
        Path(words.rest[0]).expanduser(), length, lambda name: console.print(f"packed {name}", highlight=False)
    )
    windows = sum(packing.windows for shard in shards if (packing := shard.packing(length)))
    fill = fills(shards).get(length, 0.0)
    console.print(f"{format_count(windows)} samples of {length} tokens, {fill:.2%} full", highlight=False)
    if words.flag("--json"):
        print(json.dumps({"folder": words.rest[0], "sequence_length": length, "windows": windows, "fill": fill}))
    return EXIT_OK
