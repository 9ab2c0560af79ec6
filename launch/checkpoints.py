"""`isthmus checkpoint`: what a run has saved, whether every byte is as it was written, and its model for others."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from isthmus.errors import EXIT_BUG, EXIT_OK, UserError
from isthmus.fault_tolerance.manifest import Broken, check_hashes
from isthmus.fault_tolerance.records import parse_folder_name
from isthmus.fault_tolerance.store import Found, Store, inspect
from isthmus.launch.export import export
from isthmus.launch.reading import reading
from isthmus.launch.words import Words
from isthmus.units import format_count, format_duration

_USAGE = """\
isthmus checkpoint list RUN [--json]      what a run has saved: step, tokens, size, age, whole or why not
isthmus checkpoint verify PATH [--json]   read every byte and compare its hash; PATH is a checkpoint, or a run for all
isthmus checkpoint export PATH --to FORMAT [--out FOLDER] [--precision fp32|bf16] [--json]
                                          write the model for others; PATH is a checkpoint, or a run for its newest:
                                          torch_dist   Megatron's distributed format; under torchrun, ranks share it
                                          huggingface  LlamaForCausalLM for transformers, with the tokenizer

RUN is a run folder (runs/NAME) or a site's (runs/NAME/SITE). An export is in exports/ beside the checkpoints, unless
--out says otherwise, and in the precision that the model was trained in.
"""


def main(argv: Sequence[str]) -> int:
    """Return 0, or 1 where `verify` has found damage."""
    try:
        verb = next((word for word in argv if not word.startswith("-")), "")
        options = ("--to", "--out", "--precision") if verb == "export" else ()
        words = Words(argv, verb="checkpoint", flags=("--json",), options=options)
        if words.help or not argv:
            print(_USAGE, end="")
            return EXIT_OK
        verbs = {"list": _list, "verify": _verify, "export": export}
        if verb not in verbs or len(words.rest) != 2:
            what = "give list RUN, verify PATH or export PATH --to FORMAT"
            raise UserError(what, where="isthmus checkpoint", fix="--help explains")
        return verbs[verb](Path(words.rest[1]).expanduser(), words)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code


def _list(path: Path, words: Words) -> int:
    rows = [_row(entry) for entry in _found(path)]
    if words.flag("--json"):
        print(json.dumps({"checkpoints": rows}))
        return EXIT_OK
    table = Table("site", "step", "tokens", "size", "age", "state", "folder")
    for row in rows:
        whole = row["state"] == "whole"
        table.add_row(
            row["site"],
            str(row["step"]),
            format_count(row["tokens"]) if whole else "",
            f"{row['bytes'] / 1e6:.1f} MB" if whole else "",
            format_duration(time.time() - row["saved_at"]) if whole else "",
            row["state"],
            row["folder"],
        )
    Console(soft_wrap=True).print(table)
    return EXIT_OK


def _verify(path: Path, words: Words) -> int:
    results = []
    entries = _found(path)
    total = sum(entry.manifest.total_bytes for entry in entries if entry.manifest)
    with reading(total, quiet=words.flag("--json")) as done:
        for entry in entries:
            why = entry.broken
            if entry.manifest is not None:
                try:
                    check_hashes(entry.folder, entry.manifest, range(entry.manifest.ranks), done, direct=True)
                except Broken as error:
                    why = str(error)
            results.append({"folder": str(entry.folder), "step": entry.step, "broken": why})
    if words.flag("--json"):
        print(json.dumps({"checkpoints": results}))
    else:
        for result in results:
            print(f"{result['folder']}: {result['broken'] or 'every byte is as it was written'}")
    return EXIT_BUG if any(result["broken"] for result in results) else EXIT_OK


def _row(entry: Found) -> dict[str, Any]:
    manifest = entry.manifest
    row: dict[str, Any] = {"step": entry.step, "folder": str(entry.folder), "site": entry.folder.parents[1].name}
    if manifest is None:
        return row | {"state": entry.broken}
    return row | {
        "state": "whole",
        "site": manifest.site,
        "tokens": manifest.tokens,
        "bytes": manifest.total_bytes,
        "saved_at": manifest.saved_at,
        "ranks": manifest.ranks,
        "attempt": manifest.attempt,
    }


def _found(path: Path) -> list[Found]:
    if (numbers := parse_folder_name(path.name)) is not None and path.is_dir():
        return [inspect(path.absolute(), *numbers)]
    folders = [path / "checkpoints", *sorted(path.glob("*/checkpoints"))]
    found = [entry for folder in folders for entry in Store(folder).scan()]
    if not found:
        raise UserError("holds no checkpoint", where=str(path), fix="give a run folder, or one checkpoint's folder")
    return found
