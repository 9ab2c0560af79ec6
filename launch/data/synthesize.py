"""`isthmus data synthesize`."""

import importlib
import json
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.table import Table

from isthmus.config import CONFIG_MODULE, compose, keys_of, to_yaml
from isthmus.data.synthetic.calibrate import Calibration, calibrate
from isthmus.data.synthetic.config import GeneratorKind, JudgeConfig, SynthesizeConfig
from isthmus.data.synthetic.generators.build import OpenSampler
from isthmus.data.synthetic.pipeline import Outcome, folder_lock, synthesize
from isthmus.data.synthetic.plan import plan_synthesis
from isthmus.data.synthetic.progress import SynthesisProgress, describe
from isthmus.data.synthetic.registry import RECIPES, load
from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.words import Words
from isthmus.units import format_count

_USAGE = """\
isthmus data synthesize data=RECIPE out=DIR [workers=N] [KEY=VALUE] ...

Make a synthetic source for the mixture: tasks, a generator's answers, verifiers, repair, judges, then what `isthmus
data prepare` does about benchmarks, duplicates and shards. RECIPE is a file of yours (RECIPE.yaml) or one of these,
which run as they are, without a model: {recipes}.

Interrupt it anywhere: the same command goes on, and nothing that was answered is asked again. Raise data.items or a
budget, and it goes on from there.

Options:
  --calibrate FILE   let the judges judge labelled texts (JSON lines with "text" and "keep") and compare
  --print-config     print the composed configuration and end
  --json             print one JSON object on standard output at the end, everything else on standard error
  --help             print this

"""


def main(argv: Sequence[str]) -> int:
    """Compose, synthesize, and print what was accepted.

    Raises:
        UserError: the configuration is wrong, a server gives up, or nothing was accepted.
        KeyboardInterrupt: the user stopped it.
    """
    words = Words(argv, flags=("--json", "--print-config"), options=("--calibrate",), verb="data synthesize")
    if words.help:
        _print_help()
        return EXIT_OK
    config = compose(SynthesizeConfig, "synthesize", _with_recipe(words.rest))
    if words.flag("--print-config"):
        print(to_yaml(config), end="")
        return EXIT_OK
    as_json = words.flag("--json")
    console = Console(stderr=as_json)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with _samplers(config) as open_sampler:
        if labelled := words.value("--calibrate"):
            plan = plan_synthesis(config, secrets=os.environ, open_sampler=open_sampler)
            with closing(plan), folder_lock(plan.out):
                found = calibrate(plan, Path(labelled).expanduser())
            console.print(_calibration_table(found))
            if as_json:
                print(json.dumps({entry.name: _plain_calibration(entry) for entry in found}))
            return EXIT_OK
        outcome = synthesize(config, SynthesisProgress(console), secrets=os.environ, open_sampler=open_sampler)
    _show(console, outcome, config)
    if as_json:
        print(json.dumps(_plain(outcome)))
    return EXIT_OK


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that ship with isthmus."""
    folder = resources.files(CONFIG_MODULE) / "recipe"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@contextmanager
def _samplers(config: SynthesizeConfig) -> Iterator[OpenSampler | None]:
    """Within: checkpoints can be opened. The engine is loaded only where one is asked for."""
    members = config.data.judges.members.values()
    kinds = {config.data.generator.kind, *(judge.generator.kind for judge in members)}
    if GeneratorKind.checkpoint not in kinds:
        yield None
        return
    # Megatron warns at import, once a module, that it has no transformer-engine; nothing here would use it.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    with importlib.import_module("isthmus.train.sampling").samplers() as open_sampler:
        yield open_sampler


def _with_recipe(words: Sequence[str]) -> list[str]:
    """Put the file of a shipped recipe where its name stands."""
    found = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "data" and not value.endswith((".yaml", ".yml")):
            if value not in shipped_recipes():
                choices = ", ".join(shipped_recipes())
                raise UserError(
                    f"there is no recipe '{value}'", where="data=", fix=f"name a YAML file, or one of: {choices}"
                )
            word = f"data={resources.files(CONFIG_MODULE) / 'recipe' / value}.yaml"
        found.append(word)
    if not any(word.startswith("data=") for word in found):
        raise UserError("is not given", where="data=", fix="name a recipe: data=RECIPE.yaml")
    return found


def _show(console: Console, outcome: Outcome, config: SynthesizeConfig) -> None:
    statistics = outcome.statistics
    if outcome.already:
        console.print("it was there already: the same recipe, settings and items", highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("topic", "tries", "accepted", "share"):
        table.add_column(heading, justify="left" if heading == "topic" else "right")
    for name, (tries, accepted) in sorted(statistics.topics.items()):
        table.add_row(name, f"{tries:,}", f"{accepted:,}", f"{accepted / tries:.1%}")
    console.print(table)
    for label, count in sorted(statistics.reasons.items(), key=lambda entry: (-entry[1], entry[0])):
        console.print(f"{label}: {count:,}", highlight=False, markup=False)
    console.print(describe(statistics, outcome.spent), highlight=False)
    if not outcome.finished:
        console.print(
            "the budget ended it before the last item: raise it and run the same command again", highlight=False
        )
    if not config.data.decontaminate.files:
        console.print(
            "no benchmark is named in data.decontaminate.files: nothing was held against one", highlight=False
        )
    if not config.data.tokenizer.path:
        console.print(
            "no tokenizer is named in data.tokenizer.path: one was trained on these texts, which fits no other source",
            highlight=False,
        )
    console.print(
        f"{format_count(outcome.documents)} documents, {format_count(outcome.tokens)} tokens in {outcome.folder}; "
        "report.html shows what was rejected",
        highlight=False,
    )


def _plain(outcome: Outcome) -> dict[str, object]:
    statistics = outcome.statistics
    return {
        "folder": str(outcome.folder),
        "documents": outcome.documents,
        "tokens": outcome.tokens,
        "finished": outcome.finished,
        "already": outcome.already,
        "items": statistics.items,
        "tries": statistics.tries,
        "accepted": statistics.accepted,
        "verified_first": statistics.verified_first,
        "repaired": statistics.repaired,
        "repaired_verified": statistics.repaired_verified,
        "reasons": dict(sorted(statistics.reasons.items())),
        "topics": dict(sorted(statistics.topics.items())),
        "spent": {**vars(outcome.spent), "kept_tokens": statistics.kept_tokens},
    }


def _plain_calibration(entry: Calibration) -> dict[str, object]:
    return {"precision": entry.precision, "recall": entry.recall, "kappa": entry.kappa, "cells": list(entry.cells)}


def _calibration_table(found: Sequence[Calibration]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("judge", "texts", "precision", "recall", "kappa"):
        table.add_column(heading, justify="left" if heading == "judge" else "right")
    for entry in found:
        numbers = (f"{value:.3f}" for value in (entry.precision, entry.recall, entry.kappa))
        table.add_row(entry.name, f"{sum(entry.cells):,}", *numbers)
    return table


def _print_help() -> None:
    print(_USAGE.format(recipes=", ".join(shipped_recipes())), end="")
    print("Keys (default): meaning")
    for name, default, meaning in keys_of(SynthesizeConfig):
        print(f"  {name} ({default}): {meaning}")
        if name == "data.judges.members":
            for key_name, key_default, key_meaning in keys_of(JudgeConfig):
                if not key_name.startswith("generator."):
                    print(f"    data.judges.members.NAME.{key_name} ({key_default}): {key_meaning}")
            print("    data.judges.members.NAME.generator: as data.generator, kind: same by default")
    print("Options of each recipe")
    for recipe, entry in RECIPES.items():
        print(f"  {recipe}")
        for name, default, meaning in keys_of(load(entry.options)):
            print(f"    data.options.{name} ({default}): {meaning}")
