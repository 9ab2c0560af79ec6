"""Whether an answer equals the frozen one as mathematics, not as text (math-verify, on sympy).

The answer of a candidate is what it says last and once: `\\boxed{...}`, else a line `Answer: ...`. Expressions of
models are untrusted: they are evaluated in a process of their own that is ended when it takes too long.
"""

import importlib.util
import re
from fractions import Fraction
from typing import Any

from isthmus.data.extras import need
from isthmus.data.synthetic.protocols import Candidate, Item, Verdict
from isthmus.data.synthetic.verifiers.isolated import Isolated

_LINE = re.compile(r"^\W*(?:the )?(?:final )?answer(?:\W*[:=]\W*?| is:? )\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
_LONGEST = 300  # characters of an answer
_SECONDS = 5.0
_PLAIN_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_WRAPPED = [
    re.compile(pattern)
    for pattern in (r"\$([^$]*)\$", r"\\\((.*)\\\)", r"\\\[(.*)\\\]", r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}")
]
_UNIT = re.compile(r"(.*[\d}])(?:\s|\\[ ,;])*(?:\\(?:text|mathrm)\{)?\s*([A-Za-z][A-Za-z/]+)\}?")
_WORDS = re.compile(r"[a-z/]+")
_HEDGE = re.compile(r"\b(?:or|about|approximately|roughly|around|maybe|either)\b|\u2248|\\approx|\u00b1|\\pm", re.I)


def answer_of(text: str) -> str | None:
    """Return the final answer of a solution, or None if it gives none or several that differ."""
    boxed = _boxed(text)
    found = boxed or [match[1] for match in _LINE.finditer(text)]
    found = [_stripped(answer) for answer in found]
    return found[-1] if found and len(set(found)) == 1 and found[-1] else None


class Mathematics:
    """Compares with `item.frozen["answer"]`, which is LaTeX or plain text."""

    name = "mathematics"
    version = 1

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            need("math_verify", "'isthmus[synthetic]'")
        self._process = Isolated("isthmus.data.synthetic.verifiers.symbolic:equal", seconds=_SECONDS)

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        answer = answer_of(candidate.text)
        expected = str(item.frozen["answer"])
        if answer is None:
            return Verdict(False, "no single final answer")
        return self.compare(expected, answer, str(item.task.get("question", "")))

    def compare(self, expected: str, answer: str, question: str = "") -> Verdict:
        """Return whether two answers are equal: of different form perhaps, but not merely close.

        A unit is no part of the answer where the question names it.
        """
        details: dict[str, Any] = {"answer": answer[:_LONGEST]}
        if len(answer) > _LONGEST:
            return Verdict(False, "answer too long", details)
        if _stripped(answer) == _stripped(expected):
            return Verdict(True, "", details)
        if expected.startswith(r"\{"):  # the solutions are x = 1 or x = 2
            answer = re.sub(r"\bor\b", ",", answer)
        if _HEDGE.search(answer) and not _HEDGE.search(expected):
            return Verdict(False, "hedged answer", details)
        if unit := _UNIT.fullmatch(_stripped(answer)):
            if unit[2].lower() not in _WORDS.findall(question.lower()):
                return Verdict(False, "another unit", details)
            answer = unit[1]
        if ("%" in answer) != ("%" in expected):
            return Verdict(False, "wrong answer", details)
        numbers = [_PLAIN_NUMBER.fullmatch(_stripped(value)) for value in (expected, answer)]
        if all(numbers):
            same = _value(expected) == _value(answer)
            return Verdict(same, "" if same else "wrong answer", details)
        result = self._process.call(_stripped(expected), _stripped(answer))
        if result is None:
            return Verdict(False, "answer takes too long to compare", details)
        return Verdict(bool(result), "" if result else "wrong answer", details)

    def close(self) -> None:
        self._process.close()


def _boxed(text: str) -> list[str]:
    """Return what stands in each \\boxed{}, braces matched."""
    found = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            found.append(text[match.end() : at - 1])
    return found


def _stripped(answer: str) -> str:
    answer = answer.strip().strip("*_` ")
    before = ""
    while before != answer:
        before = answer
        answer = answer.rstrip(" .;") if not answer.endswith("...") else answer
        for wrapped in _WRAPPED:
            if found := wrapped.fullmatch(answer):
                answer = found[1].strip()
    return answer


def _value(number: str) -> Fraction:
    return Fraction(_stripped(number).replace(",", "").replace("\u2212", "-").removeprefix("+"))
