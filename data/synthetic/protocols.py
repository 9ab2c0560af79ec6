"""What a recipe is made of: items, prompts, generators, verifiers, judges. No part of it does any input or output.

The order is *seeds -> prompts -> generator -> verifiers -> repair -> judges*. An `Item` exists, with the tests or the
answer that will accept a candidate in `frozen`, before the first request about it is made, and prompts are written
from `task` alone: a model can neither see nor write what accepts it. `frozen` is hashed into lineage and every verdict.
"""

import hashlib
import json
from collections.abc import Generator as Steps
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Item:
    """One task. All values are plain JSON.

    Args:
        id: unique in the recipe, the same in every run.
        topic: what acceptance is reported by.
        task: what prompts may show.
        frozen: what verifiers check against: tests, answers, the source's numbers. No prompt is made from it.
        parents: what it was made of: ids of documents, files with their hash.
    """

    id: str
    topic: str
    task: Mapping[str, Any]
    frozen: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()

    @property
    def frozen_hash(self) -> str:
        """16 hex digits of what the candidate is checked against."""
        return digest(self.frozen)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: messages as (role, text).

    Args:
        purpose: `answer`, `repair`, `judge` or a name that the recipe's `template` knows.
        facts: what `template` answers from; a part of the task, or of what models have said so far.
        max_tokens: the longest answer; None for the recipe's `sampling.max_tokens`.
    """

    messages: tuple[tuple[str, str], ...]
    purpose: str = "answer"
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None

    @property
    def plain(self) -> str:
        """The messages as one text, for models that were never taught to chat."""
        return "\n\n".join(text for _, text in self.messages) + "\n\n"


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt with everything that its answer depends on; `key` is a hash of that, so no answer is paid for twice."""

    key: str
    item: Item
    prompt: Prompt
    seed: int
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model answered. `finish` is `stop` (it ended, or met a stop text) or `length` (cut at `max_tokens`)."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model's work on an item: try `index` of K, after `repairs` rounds of repair."""

    text: str
    index: int = 0
    repairs: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier or judge found. `reason` is short and countable; a repair round is shown `details`.

    For code, `details` has `stdout`, `stderr` and `returncode`.
    """

    ok: bool
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)


class Sampler(Protocol):
    """A checkpoint that continues text; `train` builds it, the launcher passes it in."""

    fingerprint: str

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop: Sequence[str],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """Continue each prompt. What prompt i becomes depends on `seeds[i]`, not on its neighbours."""
        ...


class Generator(Protocol):
    """Answers requests. `parallel` calls of `complete` may be under way at a time, each with up to `batch` requests.

    0 in parallel: it takes no time, and is called where the request arises.
    """

    name: str
    fingerprint: str
    parallel: int
    batch: int

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer in the order of the requests.

        Raises:
            Unanswerable: this request will never be answered; the candidate is rejected.
            UserError: no request will be, until the user does something.
        """
        ...

    def stop(self) -> None:
        """Wait for nothing any more: what is under way ends as it is. Called from another thread."""
        ...


class Unanswerable(Exception):
    """A request that the model's server refuses for good: too long, filtered, malformed.

    Args:
        tokens: of the prompt and the answer, that were paid for nevertheless.
    """

    def __init__(self, reason: str, tokens: tuple[int, int] = (0, 0)) -> None:
        super().__init__(reason)
        self.tokens = tokens


class Verifier(Protocol):
    """Decides by computing. `name` stands in reports; `version` changes whenever a verdict could.

    A verifier with an attribute `quick = True` takes well under a millisecond and is called in the thread that decides.
    """

    name: str
    version: int

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        """Compare the candidate with `item.frozen`. Called from several threads; equal input gives equal verdicts."""
        ...


class Judge(Protocol):
    """Decides by asking a model; does not ask itself, so that the answers go through the journal."""

    name: str

    def prompt(self, item: Item, document: str) -> Prompt:
        """Return the question with its rubric."""
        ...

    def read(self, answer: str) -> Verdict:
        """Return the verdict; `details` has the scores. An answer that does not follow the rubric is not ok."""
        ...


class Recipe(Protocol):
    """What one kind of synthetic text is made from, and what must hold of it."""

    name: str
    version: int
    verifiers: Sequence[Verifier]

    def items(self) -> Iterator[Item]:
        """Yield the items, the same ones in the same order in every run; there may be no end."""
        ...

    def write(self, task: Mapping[str, Any]) -> Steps[Sequence[Prompt], Sequence[str], str]:
        """Work on a task: yield prompts, get their answers, return the candidate's text. `ask_once` does one prompt."""
        ...

    def repair(self, task: Mapping[str, Any], text: str, verdict: Verdict) -> Prompt | None:
        """Return the prompt of a repair round for a rejected text; None where a second try is no use."""
        ...

    def document(self, item: Item, text: str) -> str:
        """Return the training text that an accepted candidate becomes."""
        ...

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        """Answer a prompt without a model. It may read `item.frozen`: it has nothing to learn."""
        ...


def ask_once(prompt: Prompt) -> Steps[Sequence[Prompt], Sequence[str], str]:
    """Be the `write` of a recipe that asks one thing: its answer is the candidate."""
    answers = yield [prompt]
    return answers[0]


def digest(value: Any) -> str:
    """Return 16 hex digits that depend on a JSON value and nothing else."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
