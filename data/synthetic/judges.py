"""Judgement by models: two questions, and a document stays if both are answered by 1 (Llama 3, arXiv 2407.21783)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.data.synthetic.config import PanelRule
from isthmus.data.synthetic.protocols import Item, Judge, Prompt, Verdict

SCORES = ("correctness", "style")
RUBRIC = """\
correctness is 1 if every statement is right, nothing contradicts itself or the material, no step is missing; else 0.
style is 1 if the text is clear, complete and free of repetition, filler, and talk about being an assistant; else 0."""
_FORMAT = 'Answer with one line of JSON and nothing else: {"correctness": 0 or 1, "style": 0 or 1, "reason": "..."}'
_ANSWER_TOKENS = 256
_SAID = 200  # characters of a judge's reason that are kept
_MATERIAL = 6_000  # characters of a source that a judge is shown
_OBJECT = re.compile(r"\{[^{}]*\}")
_LOOSE = {name: re.compile(rf"\b{name}\b[\"'*]*\s*[:=]\s*[\"'*]*([01])(?![\d.])", re.IGNORECASE) for name in SCORES}
_TALK = re.compile(r"\b(as an ai|i am an ai|i'm sorry|i cannot|i can't help|language model)\b", re.IGNORECASE)


class RubricJudge:
    """Asks a model for the two scores."""

    def __init__(self, name: str, rubric: str | None = None) -> None:
        self.name, self.rubric = name, rubric or RUBRIC

    def prompt(self, item: Item, document: str) -> Prompt:
        material = item.task.get("text")
        shown = f"The material:\n{material[:_MATERIAL]}\n\n" if isinstance(material, str) else ""
        return Prompt(
            (
                ("system", f"You judge texts that a language model will be trained on.\n{self.rubric}\n{_FORMAT}"),
                ("user", f"{shown}The text:\n{document}"),
            ),
            purpose="judge",
            facts={"document": document},
            max_tokens=_ANSWER_TOKENS,
        )

    def read(self, answer: str) -> Verdict:
        """Return the verdict: of the last JSON object with both scores, else of `correctness: 1` and the like."""
        scores = _scores(answer)
        if scores is None:
            return Verdict(False, "the judge did not follow the rubric", {})
        failed = [name for name in SCORES if scores[name] != 1]
        return Verdict(not failed, f"judged 0 in {' and '.join(failed)}" if failed else "", scores)


@dataclass(frozen=True)
class Panel:
    """Judges, and how their verdicts make one."""

    judges: Sequence[Judge]
    rule: PanelRule

    def agrees(self, votes: Sequence[bool]) -> bool:
        """Say whether the panel keeps a document; half of the votes are no majority."""
        return all(votes) if self.rule is PanelRule.unanimity else 2 * sum(votes) > len(votes)


def template_judgement(document: str) -> str:
    """Answer a judge's prompt without a model: what can be seen of style; correctness is left to the verifiers."""
    lines = [line.strip() for line in document.splitlines() if line.strip()]
    repeated = len(lines) - len(set(lines)) > len(lines) // 3
    style = int(bool(lines) and not repeated and not _TALK.search(document))
    reason = "repeats itself" if repeated else "" if style else "not a text"
    return json.dumps({"correctness": 1, "style": style, "reason": reason})


def _scores(answer: str) -> dict[str, Any] | None:
    """Return the scores and, in `said`, the judge's reason; None if the answer does not have both scores."""
    for found in reversed(_OBJECT.findall(answer)):
        try:
            value = json.loads(found)
        except ValueError:
            continue
        if all(value.get(name) in (0, 1) and not isinstance(value[name], bool) for name in SCORES):
            said = {"said": str(value["reason"])[:_SAID]} if value.get("reason") else {}
            return {name: int(value[name]) for name in SCORES} | said
    loose: Mapping[str, list[str]] = {name: pattern.findall(answer) for name, pattern in _LOOSE.items()}
    if all(len(set(found)) == 1 for found in loose.values()):
        return {name: int(found[0]) for name, found in loose.items()}
    return None
