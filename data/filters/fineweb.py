"""FineWeb's rules (Penedo et al., arXiv 2406.17557, section 3.6; newlines per word from their published pipeline)."""

from functools import lru_cache

from isthmus.data.extras import need
from isthmus.data.filters.config import FineWebRules
from isthmus.data.filters.gopher import duplicates
from isthmus.data.filters.text import TextView


def fineweb(view: TextView, rules: FineWebRules) -> str | None:
    """Return in what the document is a list or a menu rather than prose, or None."""
    lines = view.filled_lines
    if not lines:
        return "empty"
    if line_punctuation(view) < rules.min_line_punctuation:
        return "line_punctuation"
    if sum(len(line) <= rules.short_line for line in lines) / len(lines) > rules.max_short_lines:
        return "short_lines"
    characters = len(view.text) - view.text.count("\n")
    if duplicates(lines)[1] / characters > rules.max_duplicate_line_characters:
        return "duplicate_line_characters"
    if view.words and view.text.count("\n") / len(view.words) > rules.max_newlines_per_word:
        return "newlines_per_word"
    return None


def line_punctuation(view: TextView) -> float:
    """Return the fraction of lines that end a sentence (Unicode's property Sentence_Terminal)."""
    lines = view.filled_lines
    return sum(ends_sentence(line[-1]) for line in lines) / len(lines) if lines else 0.0


@lru_cache(maxsize=4096)
def ends_sentence(character: str) -> bool:
    return need("regex").match(r"\p{Sentence_Terminal}", character) is not None
