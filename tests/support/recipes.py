"""Recipes in tests: their configuration, and a model that knows what a good answer is and does not always give it."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from isthmus.config import compose
from isthmus.data.synthetic.config import SynthesizeConfig
from isthmus.data.synthetic.pipeline import Outcome, synthesize
from isthmus.data.synthetic.plan import plan_synthesis
from isthmus.data.synthetic.progress import SynthesisProgress
from support.scripted_server import Messages

# Small enough for the suite, and with every branch: several styles, levels of summaries, kinds.
RECIPES: dict[str, str] = {
    "mathematics": "items: 24\ndedup: {minhash: false}\n",
    "rephrase": "items: 16\ncandidates: 2\noptions: {styles: [plain, dialogue]}\n",
    "article": "items: 10\n",
    "code": "items: 16\ndedup: {minhash: false}\n",
    "translation": "items: 16\noptions: {languages: [perl], parts: 2, inputs: 2}\ndedup: {minhash: false}\n",
    "long_context": "items: 8\noptions: {buckets: [4096], chunk_tokens: 700, fan: 2}\n",
}
HTTP = "generator: {{kind: http, url: '{url}', model: scripted, parallel: {parallel}, longest_wait_seconds: 0.02}}\n"


def write_recipe(folder: Path, recipe: str, *more: str) -> Path:
    path = folder / f"{recipe}.yaml"
    path.write_text(f"recipe: {recipe}\n{RECIPES[recipe]}{''.join(more)}")
    return path


def load_recipe(path: Path, out: Path, *overrides: str) -> SynthesizeConfig:
    return compose(SynthesizeConfig, "synthesize", [f"data={path}", f"out={out}", *overrides])


def run(path: Path, out: Path, *overrides: str, **more: Any) -> Outcome:
    progress = SynthesisProgress(Console(file=io.StringIO()))
    more.setdefault("secrets", {})
    return synthesize(load_recipe(path, out, *overrides, "workers=1"), progress, **more)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "documents.jsonl").read_text().splitlines()]


def scripted_model(path: Path) -> Callable[[Messages], str]:
    """Return a model of a recipe file's tasks: right, except that a third of its first answers are spoiled.

    What it is asked that is no task's prompt (a summary of its own summaries) it answers with the first words.
    """
    plan = plan_synthesis(
        load_recipe(path, path.parent / "unused", "data.generator.kind=template", *_NOT_HTTP), secrets={}
    )
    known: dict[Messages, str] = {}
    recipe = plan.rules.recipe
    for number, item in enumerate(recipe.items()):
        if number >= plan.data.items:
            break
        for prompt in next(recipe.write(item.task)):
            known[prompt.messages] = recipe.template(item, prompt, Random(7))
    plan.close()

    def answer(messages: Messages) -> str:
        if messages[0][1].startswith("You judge"):
            number = _number(messages)
            style = int(number % 5 > 0)
            return (
                "I would rather not."
                if number % 11 == 0
                else f'Well. {{"correctness": 1, "style": {style}, "reason": ""}}'
            )
        truth = known.get(messages[:2])
        if truth is None:
            return " ".join(messages[-1][1].split()[:12])
        if len(messages) > 2 or _number(messages) % 3:
            return truth
        if truth.endswith("\n```"):  # what follows a block of code would change nothing
            return truth.removesuffix("\n```") + " 987654321)\n```"
        return truth.replace("boxed{", "boxed{9") if "boxed{" in truth else f"{truth} 987654321"

    return answer


_NOT_HTTP = [
    "data.generator.url=null", "data.generator.model=null", "data.generator.parallel=8",
    "data.generator.longest_wait_seconds=60.0",
]  # fmt: skip


def _number(messages: Messages) -> int:
    return int(hashlib.sha256(repr(messages).encode()).hexdigest()[:8], 16)


def result(out: Path) -> Mapping[str, str]:
    """Return the hashes of everything that a run leaves, but for the journal, whose order is that of arrival."""
    names = ("documents.jsonl", "manifest.json", "report.html", "summary.json", "tokenizer.json")
    files = [out / name for name in names] + sorted(out.glob("*-00*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
