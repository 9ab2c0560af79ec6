"""Two expressions, compared by math-verify; runs in a process of its own (`Isolated`)."""

import logging
import re

from isthmus.data.extras import need

_MOST_VALUES = 64
_ASSIGNMENT = re.compile(r"^[A-Za-z](?:_\w+)?\s*=\s*(?=[^=])")
_PRODUCT = re.compile(r"([\w)}])\s*\*\s*(?=[\w(\\])")
_LARGE_POWER = re.compile(r"(?:\^|\*\*)\s*\{?\s*\(?-?\d{4,}|(?:\^|\*\*)[^+\-,]*(?:\^|\*\*)|\d{4,}\s*!")


def equal(expected: str, answer: str) -> bool:
    """Return whether both are the same number, set, interval, tuple, relation or expression."""
    verify = need("math_verify", "'isthmus[synthetic]'")
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off: ours is not
    if _LARGE_POWER.search(answer):
        return False
    try:
        gold, found = _parse(expected), _parse(answer)
        if not gold or not found:
            return False
        # Rounding is no equality: 0.333 is not 1/3.
        return bool(verify.verify(gold, found, float_rounding=12, strict=True, timeout_seconds=None))
    except Exception:  # sympy has many ways to give up on an expression that means nothing
        return False


def _parse(text: str) -> list[object]:
    verify = need("math_verify", "'isthmus[synthetic]'")
    text = _ASSIGNMENT.sub("", text).replace("\u2212", "-").replace("**", "^")
    text = _PRODUCT.sub(r"\1 \\cdot ", text)
    targets = [verify.LatexExtractionConfig(), verify.ExprExtractionConfig()]
    parsed = verify.parse(f"${text}$", extraction_config=targets[:1], parsing_timeout=None)
    if not parsed or all(isinstance(value, str) for value in parsed):
        parsed = verify.parse(text, extraction_config=targets[1:], parsing_timeout=None)
    return list(parsed)[:_MOST_VALUES]
