"""What captions hold beside speech: stage directions, music, marks of speakers."""

import re
from dataclasses import replace

from isthmus.data.transcripts.cues import Phrase

_BRACKETS = re.compile(r"\[[^\[\]]{1,80}\]")
_PARENTHESES = re.compile(r"\(([^()]{1,60})\)")
_SOUNDS = re.compile(
    r"applau|laugh|cheer|music|sigh|cough|clear(?:s|ing) throat|inaudible|unintelligible|crosstalk|silence|gasp|chuckl|"
    r"whisper|shout|scream|crying|sobs|groan|whistl|knock|ring|beep|bell|noise|speaking|speaks|foreign|sings|singing|pause",
    re.IGNORECASE,
)
_NOTES = "♪♫♬♩🎵🎶"
_SUNG = re.compile(rf"[{_NOTES}][^{_NOTES}]*[{_NOTES}]")
_TURN = re.compile(r"^(?:>>+|&gt;&gt;|-|–|—)\s*(?=\S)")
_NAME = re.compile(r"^([A-ZÀ-Þ][A-ZÀ-Þ0-9 .'’&-]{1,40}|[A-Z][a-z]+(?: [A-Z][a-z]+){0,2}):\s+(?=\S)")
ANOTHER_SPEAKER = "\0"  # someone else, who is not named


def clean(phrase: Phrase, *, stage_directions: bool, music: bool) -> Phrase | None:
    """Return a phrase without what was not said, its speaker set where the text names one; None if nothing remains.

    A mark of a change of speakers without a name (`>>`, a dash) gives the speaker ANOTHER_SPEAKER.
    """
    text, speaker = phrase.text, phrase.speaker
    if music and any(note in text for note in _NOTES):
        text = _SUNG.sub(" ", text)
        if text.lstrip().startswith(tuple(_NOTES)) or text.rstrip().endswith(tuple(_NOTES)):
            text = ""  # a song that goes on in the next cue
        text = text.translate({ord(note): " " for note in _NOTES})
    if stage_directions:
        text = _BRACKETS.sub(" ", text)
        text = _PARENTHESES.sub(lambda match: " " if _is_direction(match[1]) else match[0], text)
    text = " ".join(text.split())
    if turn := _TURN.match(text):
        text = text[turn.end() :]
        speaker = speaker or ANOTHER_SPEAKER
    if name := _NAME.match(text):
        text = text[name.end() :]
        speaker = name[1]
    return replace(phrase, text=text, speaker=speaker) if text else None


def _is_direction(content: str) -> bool:
    """Parentheses also hold what was said: only sounds, and words all in capitals, are directions."""
    letters = [character for character in content if character.isalpha()]
    return (bool(_SOUNDS.search(content)) and len(content.split()) <= 5) or (
        len(letters) > 2 and all(letter.isupper() for letter in letters)
    )
