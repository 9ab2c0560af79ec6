"""Gopher's rules of repetition and quality (Rae et al., arXiv 2112.11446, appendix A.1.1 and table A1)."""

from collections.abc import Sequence

import numpy as np

from isthmus.data.filters.config import GopherQuality, GopherRepetition
from isthmus.data.filters.text import TextView


def gopher_repetition(view: TextView, rules: GopherRepetition) -> str | None:
    """Return what of the document repeats too much, or None."""
    characters = len(view.text)
    if not characters:
        return "empty"
    count, repeated = duplicates(view.paragraphs)
    if count / len(view.paragraphs) > rules.duplicate_paragraphs:
        return "duplicate_paragraphs"
    if repeated / characters > rules.duplicate_paragraph_characters:
        return "duplicate_paragraph_characters"
    count, repeated = duplicates(view.line_blocks)
    if count / len(view.line_blocks) > rules.duplicate_lines:
        return "duplicate_lines"
    if repeated / characters > rules.duplicate_line_characters:
        return "duplicate_line_characters"
    for n, limit in sorted(rules.top_ngrams.items()):
        if top_ngram_characters(view, n) / characters > limit:
            return f"top_{n}_gram"
    for n, limit in sorted(rules.duplicate_ngrams.items()):
        found = duplicate_ngram_characters(view, n)
        if found / characters > limit:
            return f"duplicate_{n}_gram"
        if not found:
            break  # a longer n-gram that repeats would hold a shorter one that does
    return None


def gopher_quality(view: TextView, rules: GopherQuality) -> str | None:
    """Return in what the document is unlike prose, or None."""
    spoken = view.spoken_words
    if len(spoken) < rules.min_words:
        return "too_few_words"
    if len(spoken) > rules.max_words:
        return "too_many_words"
    mean = mean_word_length(view)
    if mean < rules.min_mean_word_length:
        return "short_words"
    if mean > rules.max_mean_word_length:
        return "long_words"
    words, text, lines = len(view.words), view.text, view.lines
    if not words or not lines:  # only where min_words is 0
        return None
    if text.count("#") / words > rules.max_symbols_per_word:
        return "hash_signs"
    if (text.count("...") + text.count("…")) / words > rules.max_symbols_per_word:
        return "ellipses"
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > rules.max_bullet_lines:
        return "bullet_lines"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > rules.max_ellipsis_lines:
        return "ellipsis_lines"
    if view.alphabetic_words / words < rules.min_alphabetic_words:
        return "words_without_letters"
    if rules.min_stop_words and len(set(rules.stop_words).intersection(view.words)) < rules.min_stop_words:
        return "stop_words"
    return None


def mean_word_length(view: TextView) -> float:
    """Return the mean length of the words that are no symbols."""
    spoken = view.spoken_words
    return sum(map(len, spoken)) / len(spoken) if spoken else 0.0


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
    """Return how many parts were there before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        else:
            seen.add(part)
    return count, characters


def top_ngram_characters(view: TextView, n: int) -> int:
    """Return the characters (spaces between words included) of all occurrences of the most frequent n-gram.

    Of several that are equally frequent, the one that comes first counts.
    """
    ngrams = view.ngrams(n)
    if not len(ngrams):
        return 0
    _, firsts, counts = np.unique(ngrams, return_index=True, return_counts=True)
    most = int(counts.max())
    first = int(firsts[counts == most].min())
    return (int(view.ngram_characters(n)[first]) + n - 1) * most


def duplicate_ngram_characters(view: TextView, n: int) -> int:
    """Return the characters in n-grams that were there before, counting no word twice.

    A greedy walk: past the end of a repeated n-gram, else one word on. Only n-grams that occur twice can matter, so the
    walk visits those alone.
    """
    ngrams = view.ngrams(n)
    if len(ngrams) < 2:
        return 0
    order = np.argsort(ngrams, kind="stable")
    same = ngrams[order][1:] == ngrams[order][:-1]
    if not same.any():
        return 0
    twice = np.zeros(len(ngrams), dtype=bool)
    twice[order[1:][same]] = True
    twice[order[:-1][same]] = True
    places = np.flatnonzero(twice)
    characters = view.ngram_characters(n)
    seen: set[int] = set()
    total = free = 0
    for place, ngram, size in zip(places.tolist(), ngrams[places].tolist(), characters[places].tolist(), strict=True):
        if place < free:
            continue
        if ngram in seen:
            total += size
            free = place + n
        else:
            seen.add(ngram)
    return total
