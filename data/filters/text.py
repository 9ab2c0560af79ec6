"""A document as rules see it: words, lines and n-grams, each computed once."""

import re
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

# A run of letters, digits and apostrophes, or one symbol: near spaCy's rules for European languages, in one pass.
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_LINES = re.compile(r"\n+")
_PARAGRAPHS = re.compile(r"\n{2,}")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class TextView:
    """A text with what rules ask of it. A rule that changes the text makes a new view."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return _WORD.findall(self.text)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def filled_lines(self) -> list[str]:
        """Lines at newlines only, without blank ones."""
        return [line for line in self.text.split("\n") if line.strip()]

    @cached_property
    def line_blocks(self) -> list[str]:
        return _LINES.split(self.text)

    @cached_property
    def paragraphs(self) -> list[str]:
        return _PARAGRAPHS.split(self.text.strip())

    @cached_property
    def spoken_words(self) -> list[str]:
        """The words that are no symbols."""
        return [word for word in self.words if len(word) > 1 or word.isalnum()]

    @cached_property
    def word_lengths(self) -> NDArray[np.int64]:
        return np.fromiter(map(len, self.words), dtype=np.int64, count=len(self.words))

    @cached_property
    def alphabetic_words(self) -> int:
        return sum(word.isalpha() or any(map(str.isalpha, word)) for word in self.words)

    def ngrams(self, n: int) -> NDArray[np.uint64]:
        """Return a 64-bit number for each n-gram; equal n-grams of this text have equal numbers."""
        ids = self._word_ids
        if len(ids) < n:
            return np.zeros(0, dtype=np.uint64)
        count = len(ids) - n + 1
        hashes = ids[:count].copy()
        for place in range(1, n):
            hashes *= _MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
            hashes += ids[place : place + count]
        return hashes

    def ngram_characters(self, n: int) -> NDArray[np.int64]:
        """Return the characters of each n-gram, without spaces."""
        sums = np.concatenate([[0], np.cumsum(self.word_lengths)])
        return sums[n:] - sums[:-n] if len(sums) > n else np.zeros(0, dtype=np.int64)

    @cached_property
    def _word_ids(self) -> NDArray[np.uint64]:
        numbers: dict[str, int] = {}
        found = [numbers.setdefault(word, len(numbers)) for word in self.words]
        return mix(np.array(found, dtype=np.uint64))


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread numbers over 64 bits: splitmix64's finalizer (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
