"""`isthmus data mix`: what a mixture will serve, before anything is trained on it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from isthmus.config import compose
from isthmus.data.accounting import Account, account
from isthmus.errors import EXIT_OK
from isthmus.launch.data.mix_report import write_mix_report
from isthmus.launch.words import Words
from isthmus.train.config import Config
from isthmus.train.validate import load_corpus, plan_run
from isthmus.units import format_count

_USAGE = """\
isthmus data mix data=FILE.yaml train.tokens=N [--html FILE] [--json] [overrides of `isthmus train`]

Print what a run would serve: tokens and epochs of each source by phase, the exact rational mix, which caps bind and
where the tokens went instead, and what the repetition is worth. A mix that is impossible is refused with the numbers.

Options:
  --html FILE   draw it, in one self-contained file
  --json        print one JSON object on standard output
"""


def main(argv: Sequence[str]) -> int:
    """Plan and print a mixture.

    Raises:
        UserError: the configuration is wrong, or the caps leave too few tokens.
    """
    words = Words(argv, verb="data mix", flags=("--json",), options=("--html",))
    if words.help:
        print(_USAGE, end="")
        return EXIT_OK
    config = compose(Config, "train", words.rest)
    corpus, mixture = load_corpus(config, plan_run(config, world_size=1), admit=False)
    synthetic = {name: source.synthetic for name, source in corpus.sources.items()}
    found = account(mixture, synthetic, config.data.real_floor)
    console = Console(stderr=words.flag("--json"), soft_wrap=True)
    _show(console, found)
    console.print(f"fingerprint {mixture.fingerprint}", highlight=False)
    if path := words.value("--html"):
        write_mix_report(Path(path).expanduser(), found, mixture.fingerprint)
        console.print(f"drawn in {path}", highlight=False)
    if words.flag("--json"):
        fingerprints = {name: source.fingerprint for name, source in corpus.sources.items()}
        print(json.dumps({"fingerprint": mixture.fingerprint, "sources": fingerprints, **asdict(found)}))
    return EXIT_OK


def _show(console: Console, found: Account) -> None:
    for phase in found.phases:
        table = Table(box=None, pad_edge=False, title_justify="left")
        table.title = f"{phase.name}: {format_count(phase.tokens)} tokens"
        for heading in ("source", "tokens", "epochs", "share", "asked", "q of Q"):
            table.add_column(heading, justify="left" if heading == "source" else "right")
        for name, served in phase.sources.items():
            exact = ", then ".join(f"{quotas.get(name, 0)}/{sum(quotas.values())}" for quotas in phase.quotas)
            table.add_row(
                name,
                format_count(served.tokens),
                f"{served.epochs:.3g}",
                f"{served.share:.2%}",
                f"{served.asked:.2%}",
                exact,
            )
        console.print(table)
        console.print()
    table = Table(box=None, pad_edge=False, title="whole run", title_justify="left")
    for heading in ("source", "available", "served", "epochs", "unique", "worth (D')"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for name, served in found.total.items():
        table.add_row(
            name,
            format_count(found.available[name]),
            format_count(served.tokens),
            f"{served.epochs:.3g}",
            format_count(found.unique[name]),
            format_count(found.effective[name]),
        )
    table.add_row(
        "all",
        format_count(sum(found.available.values())),
        format_count(sum(served.tokens for served in found.total.values())),
        "",
        format_count(sum(found.unique.values())),
        format_count(sum(found.effective.values())),
    )
    console.print(table)
    for line in found.notes:
        console.print(line, highlight=False)
    for line in found.warnings:
        console.print(f"warning: {line}", highlight=False)
