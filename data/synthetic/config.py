"""What `isthmus data synthesize` can be told."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from isthmus.config import key
from isthmus.data.prepare.config import DecontaminateConfig, DedupConfig, ShardsConfig, TokenizerFile


class GeneratorKind(Enum):
    template = "template"
    http = "http"
    checkpoint = "checkpoint"
    same = "same"


class Api(Enum):
    chat = "chat"
    completions = "completions"


class PanelRule(Enum):
    majority = "majority"
    unanimity = "unanimity"


@dataclass(kw_only=True, slots=True)
class GeneratorConfig:
    """What answers prompts."""

    kind: GeneratorKind = key(
        GeneratorKind.template,
        "template (no model), http (an OpenAI-compatible server), checkpoint (isthmus'), same (judges: the generator)",
    )
    url: str | None = key(None, "http: address up to and with the version, as http://localhost:8000/v1")
    model: str | None = key(None, "http: the server's name for the model")
    revision: str = key("", "http: what tells this model from others of its name; part of the generator's hash")
    api: Api = key(Api.chat, "http: chat, or completions for models that were never taught to chat")
    key_variable: str | None = key(None, "http: environment variable with the API key")
    parallel: int = key(8, "http: requests under way at a time")
    attempts: int = key(6, "http: how often a request is sent before the command gives up")
    timeout_seconds: float = key(120.0, "http: how long to wait for an answer")
    longest_wait_seconds: float = key(60.0, "http: the longest pause between attempts, whatever the server asks for")
    requests_per_minute: float | None = key(None, "http: never send more")
    tokens_per_minute: float | None = key(None, "http: never ask for more, prompts and answers together")
    prompt_price: float = key(0.0, "price of a million tokens of prompts, for the budget and the report")
    completion_price: float = key(0.0, "price of a million tokens of answers")
    path: str | None = key(None, "checkpoint: a run folder, or a step of one")
    batch: int = key(16, "checkpoint: prompts that are continued together")


@dataclass(kw_only=True, slots=True)
class SamplingConfig:
    temperature: float = key(0.7, "0 always takes the most probable token")
    top_p: float = key(0.95, "sample from the most probable tokens that together have this probability")
    max_tokens: int = key(1024, "longest answer; one that is cut off there is rejected")
    stop: list[str] = key([], "texts that end an answer")


@dataclass(kw_only=True, slots=True)
class SeedsConfig:
    """The documents that a recipe starts from."""

    kind: str | None = key(None, "pages, talks, manual (embedded), files, dataset (null: the recipe's own choice)")
    path: str | None = key(None, "files: file, folder or glob of .txt, .md, .jsonl, .vtt, .srt; dataset: its folder")
    licence: str | None = key(None, "licence of the seeds, which what is made of them inherits")


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    generator: GeneratorConfig = field(default_factory=lambda: GeneratorConfig(kind=GeneratorKind.same))
    rubric: str | None = key(None, "what correctness and style mean (null: as in data/synthetic/judges.py)")


@dataclass(kw_only=True, slots=True)
class PanelConfig:
    """Judges, and how many of them must give 2 of 2."""

    members: dict[str, JudgeConfig] = key({}, "NAME: {generator, rubric} (none: nothing is judged)")
    rule: PanelRule = key(PanelRule.majority, "majority or unanimity")


@dataclass(kw_only=True, slots=True)
class BudgetConfig:
    """What a source may cost in all, over every run of the command; the run ends in good order before it costs more."""

    requests: int | None = key(None, "requests")
    tokens: int | None = key(None, "tokens of prompts and answers")
    cost: float | None = key(None, "cost by the generators' prices")


@dataclass(kw_only=True, slots=True)
class SynthesizeData:
    """The file given as `data=`."""

    recipe: str = key("", "name of a recipe")
    options: dict[str, Any] = key({}, "the recipe's own keys; `isthmus data synthesize --help` lists them")
    items: int = key(100, "tasks; a higher number goes on where the last one ended")
    seed: int = key(0, "of tasks and of every request")
    seeds: SeedsConfig = key(SeedsConfig, "")
    generator: GeneratorConfig = key(GeneratorConfig, "")
    sampling: SamplingConfig = key(SamplingConfig, "")
    candidates: int = key(1, "K: tries for each task")
    keep: int = key(1, "tries end when so many were accepted")
    repairs: int = key(1, "rounds of repair for a rejected try, where the recipe has any")
    verifiers: list[str] = key([], "more verifiers beside the recipe's own")
    judges: PanelConfig = key(PanelConfig, "")
    budget: BudgetConfig = key(BudgetConfig, "")
    source: str | None = key(None, "name of the source in the dataset (null: the recipe's)")
    tokenizer: TokenizerFile = key(TokenizerFile, "")
    dedup: DedupConfig = key(DedupConfig, "")
    decontaminate: DecontaminateConfig = key(DecontaminateConfig, "")
    shards: ShardsConfig = key(ShardsConfig, "")
    examples: int = key(3, "documents shown for each reason in the report")


@dataclass(kw_only=True, slots=True)
class SynthesizeConfig:
    """Everything that `isthmus data synthesize` can be told."""

    data: SynthesizeData = key(SynthesizeData, "")
    out: str | None = key(None, "folder of the dataset")
    workers: int = key(2, "threads that verify, and processes that tokenize; changes nothing in the result")
