"""Phrases to paragraphs: a new one at a pause, at another speaker's turn, or after enough whole sentences."""

import re
from collections.abc import Sequence
from dataclasses import replace

from isthmus.data.transcripts.cleaning import ANOTHER_SPEAKER
from isthmus.data.transcripts.cues import Passage, Phrase

_SENTENCE_END = re.compile(r"[.!?…。！？]['\"”’)\]]*$")
_LONGEST_END = 20  # characters that the end of a sentence and its quotation marks may take
_WORDS_PER_SENTENCE = 60  # speech with fewer ends of sentences than one in so many words is unpunctuated


def join_phrases(phrases: Sequence[Phrase], *, pause_seconds: float, paragraph_words: int) -> list[Passage]:
    """Return paragraphs; unpunctuated speech is cut at pauses and turns only."""
    groups: list[list[Phrase]] = []
    speaker = ""
    words = 0
    ended = 0.0
    for phrase in phrases:
        turn = phrase.speaker == ANOTHER_SPEAKER or phrase.speaker not in ("", speaker)
        pause = phrase.start - ended > pause_seconds
        full = groups and words >= paragraph_words and _SENTENCE_END.search(groups[-1][-1].text[-_LONGEST_END:])
        if not groups or turn or pause or full:
            if groups and not turn and phrase.speaker == "":
                phrase = replace(phrase, speaker=speaker)  # the same one goes on
            groups.append([])
            words = 0
            speaker = phrase.speaker
        groups[-1].append(phrase)
        words += len(phrase.text.split())
        ended = max(ended, phrase.end)
    return [
        Passage(
            group[0].start,
            max(phrase.end for phrase in group),
            " ".join(phrase.text for phrase in group),
            group[0].speaker,
            len(group),
        )
        for group in groups
    ]


def is_punctuated(phrases: Sequence[Phrase]) -> bool:
    """Say whether sentences end often enough for the text to have been punctuated."""
    words = [word for phrase in phrases for word in phrase.text.split()]
    ends = sum(bool(_SENTENCE_END.search(word)) for word in words)
    return bool(words) and ends * _WORDS_PER_SENTENCE >= len(words)


def render(passages: Sequence[Passage], *, speakers: bool, time_marks: bool) -> str:
    """Return the text: a paragraph a passage, named where the speaker changes."""
    parts = []
    before = ""
    for passage in passages:
        named = speakers and passage.speaker not in ("", ANOTHER_SPEAKER, before)
        prefix = f"{_clock(passage.start)} " if time_marks else ""
        parts.append(f"{prefix}{passage.speaker}: {passage.text}" if named else f"{prefix}{passage.text}")
        before = passage.speaker or before
    return "\n\n".join(parts)


def _clock(seconds: float) -> str:
    whole = max(0, int(seconds))
    return f"[{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}]"
