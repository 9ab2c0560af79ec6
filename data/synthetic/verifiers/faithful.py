"""Whether a text says what its source says: numbers and names survive, none is invented, and it is no copy.

These compare what can be counted. That a sentence means the same is for judges.
"""

import re
from collections.abc import Iterable
from fractions import Fraction

from isthmus.data.dedup.signatures import words_of
from isthmus.data.synthetic.protocols import Candidate, Item, Verdict
from isthmus.data.synthetic.verifiers.facts import mentions, names_of, numbers_of

_SHOWN = 8
_FILLER = re.compile(r"\b(?:u+h+m*|u+m+|er+m|mhm|uh-huh)\b", re.IGNORECASE)
_MARKS = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?[.,]\d{3}|-->|^WEBVTT|\[(?:music|applause|laughter)\]", re.I | re.M)
_TALK = re.compile(
    r"\b(?:as an ai\b|language model|i(?:'m| am) sorry, but|i can(?:no|')t (?:help|assist)|here is (?:the|a|your)"
    r" (?:rewritten|rephrased|revised)|sure[,!] here)",
    re.IGNORECASE,
)


class Numbers:
    """Every number of the source is in the text, and no number that the source lacks.

    Args:
        keep: whether all must survive (a summary leaves some out).
    """

    name = "numbers"
    version = 1
    quick = True

    def __init__(self, keep: bool = True) -> None:
        self._keep = keep

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        source, found = numbers_of(str(item.frozen["source"])), numbers_of(candidate.text)
        lost, new = source - found if self._keep else set(), found - source
        if lost:
            return Verdict(False, "numbers were lost", {"lost": _numbers(lost)})
        return Verdict(False, "numbers were invented", {"invented": _numbers(new)}) if new else Verdict(True)


class Names:
    """At least `keep` of the source's names are in the text, and at most `new` of the text's are not in the source."""

    name = "names"
    version = 1
    quick = True

    def __init__(self, keep: float = 1.0, new: float = 0.0) -> None:
        self._keep, self._new = keep, new

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        source = str(item.frozen["source"])
        names, there = names_of(source), mentions(candidate.text)
        lost = sorted(names - there)
        if len(lost) > (1 - self._keep) * len(names) + 1e-9:
            return Verdict(False, "names were lost", {"lost": lost[:_SHOWN]})
        found = names_of(candidate.text)
        invented = sorted(found - mentions(source))
        if len(invented) > self._new * len(found) + 1e-9:
            return Verdict(False, "names were invented", {"invented": invented[:_SHOWN]})
        return Verdict(True)


class NoCopy:
    """The text is worded anew: few of its runs of `ngram` words are the source's, and none is long.

    Args:
        most: largest fraction of the text's n-grams that are in the source.
        longest: most words in a row that may be the source's.
    """

    name = "no_copy"
    version = 1
    quick = True

    def __init__(self, most: float = 0.5, longest: int = 30, ngram: int = 5) -> None:
        self._most, self._longest, self._ngram = most, longest, ngram

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        source, text = words_of(str(item.frozen["source"])), words_of(candidate.text)
        shared = _runs(source, self._ngram) & _runs(text, self._ngram)
        own = [tuple(text[at : at + self._ngram]) in shared for at in range(len(text) - self._ngram + 1)]
        fraction = sum(own) / max(1, len(own))
        details = {"fraction": round(fraction, 3)}
        if fraction > self._most:
            return Verdict(False, "near copy", details)
        if self._longest < len(text) and _runs(source, self._longest + 1) & _runs(text, self._longest + 1):
            return Verdict(False, "copies a passage", details)
        return Verdict(True, "", details)


class Length:
    """The text has between `least` and `most` times the words of the source."""

    name = "length"
    version = 1
    quick = True

    def __init__(self, least: float = 0.4, most: float = 2.5) -> None:
        self._least, self._most = least, most

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        ratio = len(candidate.text.split()) / max(1, len(str(item.frozen["source"]).split()))
        reason = "too short" if ratio < self._least else "too long" if ratio > self._most else ""
        return Verdict(not reason, reason, {"ratio": round(ratio, 3)})


class Covers:
    """The text has at least `least` of the source's longer words: an article that leaves half of a talk out is none."""

    name = "covers"
    version = 1
    quick = True

    def __init__(self, least: float = 0.5, shortest_word: int = 6) -> None:
        self._least, self._shortest = least, shortest_word

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        wanted = {word for word in words_of(str(item.frozen["source"])) if len(word) >= self._shortest}
        share = len(wanted & set(words_of(candidate.text))) / len(wanted) if wanted else 1.0
        reason = "leaves too much out" if share < self._least else ""
        return Verdict(not reason, reason, {"share": round(share, 3)})


class Written:
    """The text is prose: no fillers of speech, no cue marks, no talk about being asked."""

    name = "written"
    version = 1
    quick = True

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        for pattern, reason in (
            (_FILLER, "fillers of speech"),
            (_MARKS, "marks of captions"),
            (_TALK, "talks about itself"),
        ):
            if found := pattern.search(candidate.text):
                return Verdict(False, reason, {"found": found[0]})
        if not candidate.text.strip():
            return Verdict(False, "empty")
        return Verdict(True)


def _runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + length]) for at in range(len(words) - length + 1)}


def _numbers(values: Iterable[Fraction]) -> list[str]:
    return [str(value) if value.denominator == 1 else f"{float(value):g}" for value in sorted(values)][:_SHOWN]
