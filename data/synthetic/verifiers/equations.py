"""Whether the arithmetic that a text shows holds: every equation between plain numbers in it."""

import re
from fractions import Fraction

from isthmus.data.synthetic.protocols import Candidate, Item, Verdict

_NUMBER = r"-?\d+(?:\.\d+)?"
_EQUATION = re.compile(rf"({_NUMBER}(?:\s*[-+*/\u00d7\u00b7\u00f7]\s*{_NUMBER})+)\s*=\s*({_NUMBER}(?:/\d+)?)(?!\.?\w)")
_PART = re.compile(rf"\s*([-+*/\u00d7\u00b7\u00f7])?\s*({_NUMBER})")
_LONG = re.compile(r"\d{301}")  # Python reads at most 4300 digits
_TOUCHING = set("+-*/\u00d7\u00b7\u00f7^=(.,_\\{")


class Equations:
    """Rejects a false equation such as `3 + 4 = 8`; a result that is rounded to the digits shown is right."""

    name = "equations"
    version = 1
    quick = True

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        text = candidate.text.replace("\u2212", "-").replace(r"\times", "\u00d7").replace(r"\cdot", "\u00b7")
        for match in _EQUATION.finditer(text):
            before, after = text[: match.start()].rstrip(), text[match.end() :].lstrip()
            # A part of a longer expression, or of one with variables, says nothing by itself.
            if (before[-1:] in _TOUCHING and before) or text[: match.start()][-1:].isalnum():
                continue
            if after[:1] and after[:1] in "+-*/\u00d7\u00b7\u00f7^(%":
                continue
            if _LONG.search(match[0]):
                return Verdict(False, "number too long")
            value = _value(match[1])
            if value is not None and not _equal(value, match[2]):
                return Verdict(False, "false equation", {"equation": match[0]})
        return Verdict(True)


def _value(expression: str) -> Fraction | None:
    """Return the value by the usual precedence; None for a division by zero."""
    total, product = Fraction(0), Fraction(0)
    for position, (operator, digits) in enumerate(_PART.findall(expression)):
        number = Fraction(digits)
        if position == 0:
            product = -number if operator == "-" else number
        elif operator in ("+", "-", ""):
            # `5 -3` is read as 5 and -3: the sign belongs to the number.
            total += product
            product = -number if operator == "-" else number
        elif operator in ("/", "\u00f7"):
            if number == 0:
                return None
            product /= number
        else:
            product *= number
    return total + product


def _equal(value: Fraction, shown: str) -> bool:
    if "/" in shown:
        numerator, denominator = shown.split("/")
        return int(denominator) != 0 and value == Fraction(numerator) / int(denominator)
    digits = len(shown.partition(".")[2])
    return value == Fraction(shown) or (digits > 0 and abs(value - Fraction(shown)) <= Fraction(1, 2 * 10**digits))
