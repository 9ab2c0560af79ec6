"""Rolled captions to what was said once.

YouTube's automatic captions scroll: a phrase comes as the bottom row of a cue (its words timed by tags), alone in a cue
of about 10 ms, and as the top row of the next cue. Exports and converters keep all three, often without the tags.
"""

from collections.abc import Sequence

from isthmus.data.transcripts.cues import SECONDS_OF_A_WORD, Cue, Phrase, Row, Track

SHORT_CUE_SECONDS = 0.05
_CONTIGUOUS_SECONDS = 0.5
_ROLLED_FRACTION = 0.6  # of the cues that follow another, where neither tags nor short cues tell


def spoken_phrases(track: Track) -> tuple[list[Phrase], bool]:
    """Return the phrases of a track in order, each spoken word in one of them, and whether the captions were rolled."""
    rolled = not track.separate and is_rolled(track.cues)
    if rolled:
        return _unrolled(track.cues), True
    phrases = []
    for cue in track.cues:
        phrases += _phrases(cue, [row for row in cue.rows if row.text.strip()])
    return phrases, False


def is_rolled(cues: Sequence[Cue]) -> bool:
    """Say whether cues repeat the rows of the ones before them: by word tags, by short cues, or by most of them."""
    if any(row.timed for cue in cues for row in cue.rows):
        return True
    repeated = following = 0
    shown = ""
    for cue in cues:
        rows = _filled(cue)
        if not rows:
            continue
        if shown and _short(cue) and _plain(rows[-1]) == shown:
            return True
        if shown:
            following += 1
            repeated += len(rows) > 1 and _plain(rows[0]) == shown
        shown = _plain(rows[-1])
    return following >= 2 and repeated >= _ROLLED_FRACTION * following


def _unrolled(cues: Sequence[Cue]) -> list[Phrase]:
    phrases: list[Phrase] = []
    shown: str | None = None  # the bottom row of the cue before
    ended = float("-inf")
    for cue in cues:
        rows = _filled(cue)
        if not rows:
            ended = max(ended, cue.end)
            continue
        new = rows
        if _short(cue) and _plain(rows[-1]) == shown and len(rows) == 1:
            new = []
        elif _plain(rows[0]) == shown and not rows[0].timed and cue.rows[0].text.strip():
            # The top row is the old one. A cue of that row alone is a repetition if it follows at once.
            follows = cue.start - ended <= _CONTIGUOUS_SECONDS
            new = rows[1:] if len(rows) > 1 or follows else rows
        phrases += _phrases(cue, new)
        shown = _plain(rows[-1])
        ended = cue.end
    return phrases


def _phrases(cue: Cue, rows: Sequence[Row]) -> list[Phrase]:
    """Join a cue's rows to one phrase, or one for each speaker."""
    groups: list[list[Row]] = []
    for row in rows:
        if groups and row.speaker in ("", groups[-1][0].speaker):
            groups[-1].append(row)
        else:
            groups.append([row])
    phrases = []
    for group in groups:
        last = group[-1].last_word
        end = cue.end if last is None else min(cue.end, last + SECONDS_OF_A_WORD)
        text = " ".join(_plain(row) for row in group)
        phrases.append(Phrase(cue.start, end, text, group[0].speaker, cue.bad))
    return phrases


def _filled(cue: Cue) -> list[Row]:
    return [row for row in cue.rows if row.text.strip()]


def _short(cue: Cue) -> bool:
    return cue.end - cue.start <= SHORT_CUE_SECONDS


def _plain(row: Row) -> str:
    return " ".join(row.text.split())
