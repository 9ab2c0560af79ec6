"""The numbers and names of an English text, in whatever way they are written."""

import re
from fractions import Fraction

from isthmus.data.synthetic.protocols import digest

_DIGITS = re.compile(r"(?<![\w.,])[-\u2212]?\d+(?:,\d{3})*(?:\.\d+)?|(?<=\w)\d+|(?<=[.,])\d+")
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_ONES = f"zero one two three four five six seven eight nine {_TEENS}".split(" ")
_DECADES = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TENS = dict(zip(_DECADES, range(20, 100, 10), strict=True))
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9}
_SMALL = {**{word: number for number, word in enumerate(_ONES)}, **_TENS}
_WORD = re.compile(r"[A-Za-z]+")
# "one" and "two" stand for so much else ("one of them", "the two") that losing them is no loss of a number.
_LEAST_WORD = 3
_MOST_DIGITS = 300  # Python reads no more than 4300, and a float holds no larger number
_NAME = re.compile(r"(?:[A-Z][\w'\u2019]*[a-z\d][\w'\u2019]*|[A-Z]{2,}\w*)")
_SENTENCE_START = re.compile(r"(?:^|[.!?:;\u2026]['\"\u201d\u2019)\]]*\s+|\n\s*[-*#>\d.]*\s*|[\"\u201c(\u2018]\s*)$")
_HEADING = re.compile(r"^#+ .{1,100}$", re.MULTILINE)  # most of its words may have a capital
_POSSESSIVE = re.compile(r"['\u2019]s$|['\u2019]$")
_NOT_NAMES = {
    "i", "im", "ive", "id", "ill", "mr", "mrs", "ms", "dr", "a", "an", "the", "and", "but", "or", "if", "it", "so",
}  # fmt: skip


def numbers_of(text: str) -> set[Fraction]:
    """Return the numbers, from digits (`1,250.5`) and from words from three on (`twenty-three`, `four hundred`).

    A sign counts only where it cannot be a hyphen or a dash.
    """
    found = set()
    for match in _DIGITS.finditer(text):
        digits = match[0].replace(",", "").replace("\u2212", "-")
        # A longer one stands for itself alone: it equals what is written alike.
        found.add(Fraction(digits if len(digits) <= _MOST_DIGITS else int(digest(digits), 16)))
    return found | {Fraction(number) for number in _spelled(text) if number >= _LEAST_WORD}


def _spelled(text: str) -> list[int]:
    """Return the numbers that are written in words; `and` joins after a hundred or more (`two hundred and six`)."""
    found: list[int] = []
    total = part = 0
    open_ = False
    end = 0

    def close() -> None:
        nonlocal total, part, open_
        if open_:
            found.append(total + part)
        total, part, open_ = 0, 0, False

    for match in _WORD.finditer(text.lower()):
        word = match[0]
        between = text[end : match.start()]
        end = match.end()
        if open_ and between.strip(" -\n\u2010\u2011"):
            close()
        if word in _SMALL:
            value = _SMALL[word]
            fits = (
                not open_
                or part == 0
                or (part % 100 == 0 and part > 0)
                or (part % 10 == 0 and part % 100 and value < 10)
            )
            if not fits:
                close()
            part += value
            open_ = True
        elif word in _SCALES and open_:
            if word == "hundred":
                part *= 100
            else:
                total += part * _SCALES[word]
                part = 0
        elif word == "and" and open_ and (total or part >= 100):
            continue
        else:
            close()
    close()
    return found


def names_of(text: str) -> set[str]:
    """Return words that are written as names, in lower case: capitals in mid-sentence, but for headings."""
    inside: set[str] = set()
    text = _HEADING.sub("", text)
    for match in _NAME.finditer(text):
        word = _plain(match[0])
        if word in _NOT_NAMES or len(word) < 2:
            continue
        before = text[max(0, match.start() - 12) : match.start()]
        if not _SENTENCE_START.search(before) or sum(map(str.isupper, match[0])) > 1:
            inside.add(word)
    return inside


def mentions(text: str) -> set[str]:
    """Return every word of a text in lower case, without possessive endings: where a name may be found again."""
    return {_plain(word) for word in re.findall(r"[\w'\u2019]+", text)}


def _plain(word: str) -> str:
    return _POSSESSIVE.sub("", word).replace("'", "").replace("\u2019", "").lower()
