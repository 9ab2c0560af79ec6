"""Rules for transcripts, with thresholds of our own."""

from isthmus.data.filters.config import TranscriptRules
from isthmus.data.filters.gopher import duplicate_ngram_characters, top_ngram_characters
from isthmus.data.filters.text import TextView

_FIRST_WORDS = 1000  # the fraction of different words falls with the length of a text


def transcript_rule(view: TextView, seconds: float | None, rules: TranscriptRules) -> str | None:
    """Return in what a transcript is no usable speech, or None; `seconds` is the time span of its cues, if known."""
    spoken = view.spoken_words
    if len(spoken) < rules.min_words:
        return "too_few_words"
    if seconds:
        per_minute = len(spoken) / seconds * 60
        if per_minute < rules.min_words_per_minute:
            return "slow_speech"
        if per_minute > rules.max_words_per_minute:
            return "fast_speech"
    if view.alphabetic_words / len(view.words) < rules.min_alphabetic_words:
        return "words_without_letters"
    first = [word.lower() for word in spoken[:_FIRST_WORDS]]
    if len(set(first)) / len(first) < rules.min_distinct_words:
        return "few_different_words"
    if top_ngram_characters(view, 4) / len(view.text) > rules.max_top_ngram:
        return "top_4_gram"
    if duplicate_ngram_characters(view, 10) / len(view.text) > rules.max_duplicate_ngram:
        return "duplicate_10_gram"
    return None
