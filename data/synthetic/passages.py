"""Documents cut where they may be cut: paragraphs, sentences, and windows of a length in tokens."""

import re
from collections.abc import Callable, Iterator, Sequence

_PARAGRAPHS = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+(?=[\"'\u201c(]?[A-Z\d])")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|No|Fig|[A-Z])\.$")


def paragraphs(text: str) -> list[str]:
    return [part.strip() for part in _PARAGRAPHS.split(text) if part.strip()]


def sentences(text: str) -> list[str]:
    """Return the sentences of a paragraph, white space made even; abbreviations end none."""
    found: list[str] = []
    for part in _SENTENCE.split(" ".join(text.split())):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] = f"{found[-1]} {part}"
        elif part:
            found.append(part)
    return found


def passages(text: str, most_words: int) -> Iterator[str]:
    """Yield paragraphs in a row that together have at most `most_words` words (one paragraph at least)."""
    held: list[str] = []
    words = 0
    for paragraph in paragraphs(text):
        size = len(paragraph.split())
        if held and words + size > most_words:
            yield "\n\n".join(held)
            held, words = [], 0
        held.append(paragraph)
        words += size
    if held:
        yield "\n\n".join(held)


def chunks(parts: Sequence[str], most_tokens: int, count: Callable[[str], int]) -> list[str]:
    """Join paragraphs in a row into chunks of at most `most_tokens` tokens (one paragraph at least)."""
    found: list[list[str]] = []
    size = 0
    for part in parts:
        tokens = count(part)
        if not found or size + tokens > most_tokens:
            found.append([])
            size = 0
        found[-1].append(part)
        size += tokens
    return ["\n\n".join(held) for held in found]
