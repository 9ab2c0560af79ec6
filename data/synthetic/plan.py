"""What can be wrong with a recipe file, checked before anything is asked; and what the result depends on."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus import __version__
from isthmus.config import to_plain
from isthmus.data.dedup.benchmarks import benchmark_hashes, load_benchmarks
from isthmus.data.synthetic.config import GeneratorConfig, GeneratorKind, SynthesizeConfig, SynthesizeData
from isthmus.data.synthetic.context import CHARACTERS_PER_TOKEN, Context
from isthmus.data.synthetic.generators.build import OpenSampler, build_generator, check_generator
from isthmus.data.synthetic.journey import MAIN, Rules
from isthmus.data.synthetic.judges import Panel, RubricJudge
from isthmus.data.synthetic.protocols import Generator, Recipe, digest
from isthmus.data.synthetic.registry import RECIPES, SEEDS, build_recipe, build_verifiers, find, load
from isthmus.data.tokenizers import TextTokenizer, load_text_tokenizer
from isthmus.errors import UserError


@dataclass(frozen=True)
class Plan:
    """Everything that a run works with.

    `hash` is of all that an item's outcome depends on; `settings` are what the dataset depends on beside the outcomes.
    """

    data: SynthesizeData
    out: Path
    source: str
    rules: Rules
    generators: Mapping[str, Generator]
    prices: Mapping[str, GeneratorConfig]
    hash: str
    settings: dict[str, Any]

    def close(self) -> None:
        """End what generators and verifiers keep open."""
        for part in (*self.generators.values(), *self.rules.verifiers):
            close = getattr(part, "close", None)
            if close is not None:
                close()


def plan_synthesis(
    config: SynthesizeConfig, *, secrets: Mapping[str, str], open_sampler: OpenSampler | None = None
) -> Plan:
    """Check a configuration and build what it names.

    Raises:
        UserError: whatever is wrong.
    """
    data = config.data
    if config.out is None:
        raise UserError("is not given", where="out", fix="give the folder of the dataset: out=DIR")
    _check_numbers(config)
    check_generator(data.generator, "data.generator", judge=False)
    for name, judge in data.judges.members.items():
        check_generator(judge.generator, f"data.judges.members.{name}.generator", judge=True)
    load_benchmarks(data.decontaminate.files, data.decontaminate.ngram)
    tokenizer = None
    if data.tokenizer.path:
        tokenizer = load_text_tokenizer(data.tokenizer.path, data.tokenizer.end_of_document)
    recipe = build_recipe(data.recipe, data.options, _context(data, tokenizer))
    verifiers = [*recipe.verifiers, *build_verifiers(list(data.verifiers))]
    generators: dict[str, Generator] = {}
    prices: dict[str, GeneratorConfig] = {}
    wanted = {MAIN: (data.generator, "data.generator")}
    for name, judge in data.judges.members.items():
        wanted[name] = (judge.generator, f"data.judges.members.{name}.generator")
    for name, (chosen, where) in wanted.items():
        same = chosen.kind is GeneratorKind.same
        prices[name] = data.generator if same else chosen
        generators[name] = (
            generators[MAIN]
            if same
            else build_generator(chosen, recipe, where=where, secrets=secrets, open_sampler=open_sampler)
        )
    judges = [RubricJudge(name, judge.rubric) for name, judge in data.judges.members.items()]
    rules = Rules(
        recipe=recipe,
        verifiers=verifiers,
        panel=Panel(judges, data.judges.rule) if judges else None,
        sampling=data.sampling,
        fingerprints={name: generator.fingerprint for name, generator in generators.items()},
        seed=data.seed,
        candidates=data.candidates,
        keep=data.keep,
        repairs=data.repairs,
    )
    source = data.source or data.recipe.replace("_", "-")
    out = Path(config.out).expanduser()
    settings = {
        "source": source,
        "licence": data.seeds.licence,
        "tokenizer": [tokenizer.hash, tokenizer.end] if tokenizer else None,
        "benchmarks": benchmark_hashes(data.decontaminate.files, data.decontaminate.ngram),
        "dedup": dataclasses.asdict(data.dedup),
        "shards": dataclasses.asdict(data.shards),
        "examples": data.examples,
    }
    digested = _hash(data, recipe, rules, judges, tokenizer)
    return Plan(data, out, source, rules, generators, prices, digested, settings)


def _context(data: SynthesizeData, tokenizer: TextTokenizer | None) -> Context:
    kind = data.seeds.kind or RECIPES[data.recipe].seeds if data.recipe in RECIPES else data.seeds.kind
    if kind is None:
        if data.seeds.path:
            raise UserError("would do nothing", where="data.seeds.path", fix="remove it: this recipe has no seeds")
        read = lambda: iter(())  # noqa: E731
    else:
        reader = load(find(kind, SEEDS, "data.seeds.kind"))
        if data.seeds.path and kind not in ("files", "dataset"):
            raise UserError("is for files and dataset", where="data.seeds.path", fix=f"remove it: {kind} is embedded")
        read = lambda: reader(data.seeds)  # noqa: E731
    if tokenizer is None:
        return Context(data.seed, read)
    return Context(data.seed, read, lambda text: len(tokenizer.encode([text])[0]))


def _check_numbers(config: SynthesizeConfig) -> None:
    data, sampling, budget = config.data, config.data.sampling, config.data.budget
    checks = [
        ("workers", config.workers >= 1, config.workers, "it starts at 1"),
        ("data.items", data.items >= 1, data.items, "it starts at 1"),
        ("data.candidates", data.candidates >= 1, data.candidates, "it starts at 1"),
        ("data.keep", 1 <= data.keep <= data.candidates, data.keep, "choose 1 to data.candidates"),
        ("data.repairs", data.repairs >= 0, data.repairs, "choose 0 or more"),
        ("data.examples", data.examples >= 0, data.examples, "choose 0 or more"),
        ("data.sampling.temperature", sampling.temperature >= 0, sampling.temperature, "choose 0 or more"),
        ("data.sampling.top_p", 0 < sampling.top_p <= 1, sampling.top_p, "choose above 0 to 1"),
        ("data.sampling.max_tokens", sampling.max_tokens >= 1, sampling.max_tokens, "it starts at 1"),
        ("data.budget.requests", budget.requests is None or budget.requests >= 1, budget.requests, "it starts at 1"),
        ("data.budget.tokens", budget.tokens is None or budget.tokens >= 1, budget.tokens, "it starts at 1"),
        ("data.budget.cost", budget.cost is None or budget.cost > 0, budget.cost, "choose more than 0"),
    ]
    for where, fine, value, fix in checks:
        if not fine:
            raise UserError(f"is {value}", where=where, fix=fix)
    paid = [data.generator, *(judge.generator for judge in data.judges.members.values())]
    if budget.cost is not None and not any(entry.prompt_price or entry.completion_price for entry in paid):
        raise UserError("nothing has a price", where="data.budget.cost", fix="give the generators' prompt_price")
    if "" in data.judges.members:
        raise UserError("a judge has no name", where="data.judges.members", fix="name it")


def _hash(
    data: SynthesizeData, recipe: Recipe, rules: Rules, judges: list[RubricJudge], tokenizer: TextTokenizer | None
) -> str:
    """Return a hash of what outcomes depend on: not places, speed or what they may cost."""
    plain = to_plain(data)
    kept = ("recipe", "options", "seed", "sampling", "candidates", "keep", "repairs", "verifiers")
    return digest(
        {
            "tool": __version__,
            "data": {name: plain[name] for name in kept},
            "seeds": plain["seeds"]["kind"],
            "recipe": [recipe.name, recipe.version],
            "verifiers": [[verifier.name, verifier.version] for verifier in rules.verifiers],
            "judges": [[judge.name, hashlib.sha256(judge.rubric.encode()).hexdigest()] for judge in judges],
            "rule": plain["judges"]["rule"],
            "generators": dict(rules.fingerprints),
            "lengths": tokenizer.hash if tokenizer else CHARACTERS_PER_TOKEN,
        }
    )
