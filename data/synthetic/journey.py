"""The way of one item from its task to documents or a reason, without any input or output.

A journey yields what it needs (`Ask` a model, `Check` by a verifier) and is sent what came of it. Whoever drives it
decides when and where that happens; sent the same answers, a journey ends in the same way.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from isthmus.data.synthetic.config import SamplingConfig
from isthmus.data.synthetic.journal import Answer, Refused
from isthmus.data.synthetic.judges import Panel
from isthmus.data.synthetic.protocols import (
    Candidate,
    Completion,
    Item,
    Prompt,
    Recipe,
    Request,
    Verdict,
    Verifier,
    digest,
)

_EXCERPT = 600  # characters of a rejected text and of a prompt that are kept for people
MAIN = ""  # the name of the generator that is no judge's


@dataclass(frozen=True, slots=True)
class Ask:
    """Requests to one generator, which may be answered in any order."""

    generator: str
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Check:
    verifier: Verifier
    item: Item
    candidate: Candidate
    key: str


@dataclass(slots=True)
class Try:
    """One candidate with everything that was asked and found about it; plain JSON values.

    `stage` is where it ended: `generate`, `verify`, `judge`, or `accepted`; `first` is the stage and reason at which it
    was rejected before a repair.
    """

    index: int
    stage: str = "generate"
    reason: str = ""
    repairs: int = 0
    first: str = ""
    text: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kept_tokens: int = 0


Journey = Generator[Ask | Check, Any, dict[str, Any]]
_Asking = Generator[Ask | Check, Any, list[str]]


class _Rejected(Exception):
    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage, self.reason = stage, reason


@dataclass(frozen=True)
class Rules:
    """What all journeys of a run share; `fingerprints` are the generators', by name."""

    recipe: Recipe
    verifiers: Sequence[Verifier]
    panel: Panel | None
    sampling: SamplingConfig
    fingerprints: Mapping[str, str]
    seed: int
    candidates: int
    keep: int
    repairs: int


def journey(number: int, item: Item, rules: Rules) -> Journey:
    """Try up to K times; return the outcome of item `number`: its tries, of which the accepted ones are documents."""
    traveller = _Traveller(number, item, rules)
    tries = []
    for index in range(rules.candidates):
        tries.append((yield from traveller.attempt(index)))
        if sum(entry.stage == "accepted" for entry in tries) >= rules.keep:
            break
    return {
        "item": item.id,
        "topic": item.topic,
        "parents": list(item.parents),
        "frozen": traveller.frozen,
        "tries": [{name: getattr(entry, name) for name in Try.__slots__} for entry in tries],
    }


def judging(number: int, item: Item, text: str, rules: Rules) -> Journey:
    """Let the panel judge a text that is there; return the outcome with each judge's vote."""
    assert rules.panel is not None
    record = Try(0, stage="judge")
    votes = yield from _Traveller(number, item, rules).votes(record, rules.panel, text)
    return {"item": item.id, "votes": {judge.name: ok for judge, ok in zip(rules.panel.judges, votes, strict=True)}}


class _Traveller:
    def __init__(self, number: int, item: Item, rules: Rules) -> None:
        self._number, self._item, self._rules = number, item, rules
        self.frozen = item.frozen_hash
        self._asked = 0

    def attempt(self, index: int) -> Generator[Ask | Check, Any, Try]:
        record = Try(index)
        try:
            text = yield from self._write(record)
            document = yield from self._verify(record, text)
            if self._rules.panel is not None:
                record.stage = "judge"
                yield from self._judge(record, self._rules.panel, document)
        except _Rejected as rejected:
            record.stage, record.reason = rejected.stage, rejected.reason
            record.text = record.text[:_EXCERPT]
        else:
            record.stage, record.text = "accepted", document
            record.kept_tokens = sum(
                entry["tokens"][1] for entry in record.requests if not entry["purpose"].startswith("judge")
            )
        return record

    def _write(self, record: Try) -> Generator[Ask | Check, Any, str]:
        writing = self._rules.recipe.write(self._item.task)
        try:
            prompts = next(writing)
            while True:
                answers = yield from self._ask(record, MAIN, prompts)
                prompts = writing.send(answers)
        except StopIteration as end:
            return str(end.value)

    def _verify(self, record: Try, text: str) -> Generator[Ask | Check, Any, str]:
        """Let every verifier see the text, and a repair round the first that rejects it; return the document."""
        while True:
            record.stage, record.text = "verify", text
            candidate = Candidate(text, record.index, record.repairs)
            failed = None
            for verifier in self._rules.verifiers:
                verdict = yield from self._check(record, verifier, candidate)
                if not verdict.ok:
                    failed = (verifier.name, verdict)
                    break
            if failed is None:
                return self._rules.recipe.document(self._item, text)
            name, verdict = failed
            prompt = None
            if record.repairs < self._rules.repairs:
                prompt = self._rules.recipe.repair(self._item.task, text, verdict)
            if prompt is None:
                raise _Rejected("verify", f"{name}: {verdict.reason}")
            record.first = record.first or f"{name}: {verdict.reason}"
            record.repairs += 1
            record.stage = "generate"
            (text,) = yield from self._ask(record, MAIN, [prompt])

    def _check(self, record: Try, verifier: Verifier, candidate: Candidate) -> Generator[Ask | Check, Any, Verdict]:
        key = digest(["verdict", verifier.name, verifier.version, self.frozen, self._item.id, candidate.text])
        verdict = cast(Verdict, (yield Check(verifier, self._item, candidate, key)))
        record.verdicts.append(
            {"by": verifier.name, "ok": verdict.ok, "reason": verdict.reason, "repairs": candidate.repairs}
        )
        return verdict

    def votes(self, record: Try, panel: Panel, document: str) -> Generator[Ask | Check, Any, list[bool]]:
        """Ask every judge; one that cannot be understood or does not answer votes against."""
        votes = []
        for judge in panel.judges:
            try:
                (answer,) = yield from self._ask(record, judge.name, [judge.prompt(self._item, document)])
                verdict = judge.read(answer)
            except _Rejected as rejected:
                verdict = Verdict(False, rejected.reason)
            votes.append(verdict.ok)
            record.verdicts.append(
                {"by": judge.name, "ok": verdict.ok, "reason": verdict.reason, "scores": verdict.details}
            )
        return votes

    def _judge(self, record: Try, panel: Panel, document: str) -> Generator[Ask | Check, Any, None]:
        votes = yield from self.votes(record, panel, document)
        if not panel.agrees(votes):
            reasons = {verdict["reason"] for verdict in record.verdicts if "scores" in verdict and not verdict["ok"]}
            raise _Rejected("judge", " and ".join(sorted(reasons)))

    def _ask(self, record: Try, generator: str, prompts: Sequence[Prompt]) -> _Asking:
        """Return the answers; a cut or refused one rejects the candidate."""
        requests = tuple(self._request(record, generator, prompt) for prompt in prompts)
        answers = cast(Sequence[Answer], (yield Ask(generator, requests)))
        for request, answer in zip(requests, answers, strict=True):
            tokens = [answer.prompt_tokens, answer.completion_tokens] if isinstance(answer, Completion) else [0, 0]
            record.prompt_tokens += tokens[0]
            record.completion_tokens += tokens[1]
            purpose = f"judge {generator}" if generator else request.prompt.purpose
            prompt = "\n\n".join(text for _, text in request.prompt.messages)[:_EXCERPT]
            record.requests.append(
                {"purpose": purpose, "key": request.key, "seed": request.seed, "prompt": prompt, "tokens": tokens}
            )
        for answer in answers:
            if isinstance(answer, Refused):
                raise _Rejected(record.stage, f"not answered: {answer.reason}")
            if answer.finish == "length":
                raise _Rejected(record.stage, "cut off at max_tokens")
        return [answer.text for answer in answers if isinstance(answer, Completion)]

    def _request(self, record: Try, generator: str, prompt: Prompt) -> Request:
        sampling = self._rules.sampling
        place = [self._rules.seed, self._number, self._item.id, record.index, self._asked]
        self._asked += 1
        temperature, top_p = (0.0, 1.0) if generator else (sampling.temperature, sampling.top_p)
        max_tokens = prompt.max_tokens or sampling.max_tokens
        stop = () if generator else tuple(sampling.stop)
        seed = int(digest(["seed", *place]), 16) % 2**31
        depends = [self._rules.fingerprints[generator], prompt.messages, max_tokens, temperature, top_p, stop, place]
        return Request(digest(depends), self._item, prompt, seed, max_tokens, temperature, top_p, stop)
