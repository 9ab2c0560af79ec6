"""Sentences worded anew by rule: what the template generator has instead of a language model."""

import re
from random import Random

# Pairs that can stand for one another in nearly every sentence; the first of a group is replaced by one of the others.
_OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "about": ("roughly",), "across": ("over the breadth of",),
    "almost": ("nearly",), "also": ("in addition",), "although": ("even though",), "always": ("at all times",),
    "and": ("as well as", "and also"), "around": ("round about",), "because": ("since", "as"), "become": ("turn into",),
    "becomes": ("turns into",), "before": ("ahead of",), "begin": ("start",), "begins": ("starts",), "big": ("large",),
    "but": ("yet", "though"), "called": ("known as",), "can": ("is able to", "may"), "cannot": ("is unable to",),
    "every": ("each",), "fast": ("quick",), "few": ("not many",), "first": ("initial",),
    "gives": ("provides",), "has": ("possesses",), "have": ("possess",), "if": ("in case",),
    "important": ("significant",), "in order to": ("so as to",), "is": ("happens to be", "remains"),
    "are": ("happen to be", "remain"), "it is": ("this is",), "keep": ("retain",), "keeps": ("retains",),
    "large": ("big",), "made of": ("built from",), "make": ("produce",),
    "makes": ("produces",), "many": ("numerous",), "most": ("the majority of",),
    "moves": ("travels",), "must": ("has to",), "need": ("require",), "needs": ("requires",), "near": ("close to",),
    "never": ("at no time",), "often": ("frequently",),
    "old": ("aged",), "on the": ("upon the",), "only": ("solely",), "other": ("further",),
    "part": ("portion",), "people": ("persons",), "quickly": ("fast",), "same": ("identical",),
    "several": ("a number of",),
    "show": ("demonstrate",), "shows": ("demonstrates",), "slow": ("unhurried",), "slowly": ("at a slow pace",),
    "small": ("little",), "some": ("certain",), "sometimes": ("at times",), "still": ("even now",),
    "such as": ("for example",), "takes": ("requires",), "than": ("compared with",), "that": ("which",),
    "then": ("afterwards",), "there are": ("one finds",), "there is": ("one finds",),
    "through": ("by way of",), "until": ("up to the moment when",),
    "use": ("employ",), "used": ("employed",), "uses": ("employs",), "usually": ("as a rule",), "very": ("quite",),
    "when": ("whenever",), "where": ("at the place where",),
    "which": ("that",), "while": ("during the time that",), "with": ("together with",), "without": ("lacking",),
}  # fmt: skip
_PATTERN = re.compile(
    r"\b(" + "|".join(re.escape(word) for word in sorted(_OTHER_WORDS, key=len, reverse=True)) + r")\b", re.IGNORECASE
)
# These carry much of the grammar: another word is put in only where two would otherwise be too far apart.
_SPARING = {"that", "is", "are", "than", "and"}
_EVERY_WORDS = 4


def reword(sentence: str, random: Random) -> str:
    """Return the sentence with a word replaced about every four words, capitals kept."""
    last = -_EVERY_WORDS

    def replace(match: re.Match[str]) -> str:
        nonlocal last
        place = len(sentence[: match.start()].split())
        if place - last < (_EVERY_WORDS if match[1].lower() in _SPARING else _EVERY_WORDS - 2):
            return match[0]
        last = place
        other = random.choice(_OTHER_WORDS[match[1].lower()])
        return other[0].upper() + other[1:] if match[1][0].isupper() else other

    return _PATTERN.sub(replace, sentence)
