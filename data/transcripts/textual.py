"""WebVTT (W3C), SubRip and SBV files.

webvtt-py gives up a file at its first bad line and returns cues without their blank rows and word times, which are what
tells rolled captions apart; so these are read here, and webvtt-py is the reference of the tests.
"""

import html
import re
from collections.abc import Iterator, Sequence

from isthmus.data.transcripts.cues import Cue, Row, Track

_CLOCK = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIMING = re.compile(rf"^\s*{_CLOCK}\s*-->\s*{_CLOCK}(?:\s.*)?$")
_SBV_TIMING = re.compile(rf"^\s*{_CLOCK}\s*,\s*{_CLOCK}\s*$")
_WORD_TIME = re.compile(rf"<{_CLOCK}>")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]{1,200})>")
_VTT_TAG = re.compile(r"</?(?:c|i|b|u|v|lang|ruby|rt)(?:[.\s][^<>]*)?>|<\d[\d:.]*>", re.IGNORECASE)
_SRT_TAG = re.compile(r"</?(?:i|b|u|s|font|c|v)(?:[.\s][^<>]*)?>|\{\\[^{}]{1,60}\}", re.IGNORECASE)


def parse_vtt(text: str) -> Track:
    """Return the cues of a WebVTT file; blocks without a timing (NOTE, STYLE, REGION) are passed over.

    Raises:
        ValueError: the file does not begin with WEBVTT, or holds no cue.
    """
    lines = _lines(text)
    if not lines or not lines[0].startswith("WEBVTT"):
        raise ValueError("no WebVTT: it must begin with WEBVTT")
    header = [line for line in lines[1:12] if line.startswith("Language:")]
    language = header[0].partition(":")[2].strip() if header else ""
    cues = [
        Cue(start, end, tuple(_vtt_row(line) for line in rows))
        for start, end, rows in _blocks(lines[1:], _TIMING, blank_rows=True)
    ]
    return Track("vtt", _some(cues), language)


def parse_srt(text: str) -> Track:
    """Return the cues of a SubRip file, with or without numbers.

    Raises:
        ValueError: it holds no cue.
    """
    cues = [
        Cue(start, end, tuple(Row(_SRT_TAG.sub("", line)) for line in rows))
        for start, end, rows in _blocks(_lines(text), _TIMING, blank_rows=False)
    ]
    return Track("srt", _some(cues))


def parse_sbv(text: str) -> Track:
    """Return the cues of a YouTube SBV file.

    Raises:
        ValueError: it holds no cue.
    """
    cues = [
        Cue(start, end, tuple(Row(part) for line in rows for part in line.split("[br]")))
        for start, end, rows in _blocks(_lines(text), _SBV_TIMING, blank_rows=False)
    ]
    return Track("sbv", _some(cues))


def is_sbv(text: str) -> bool:
    return any(_SBV_TIMING.match(line) for line in text[:2000].split("\n", 3)[:3])


def _blocks(
    lines: Sequence[str], timing: re.Pattern[str], *, blank_rows: bool
) -> Iterator[tuple[float, float, list[str]]]:
    """Yield (start, end, rows); a cue ends at an empty line, or before the next timing (SubRip: and its number).

    In WebVTT a line of spaces is a row; SubRip's rows may be followed by stray empty lines, which belong to the cue.
    """
    at = 0
    while at < len(lines):
        match = timing.match(lines[at])
        at += 1
        if not match:
            continue
        rows: list[str] = []
        while at < len(lines) and not timing.match(lines[at]):
            if lines[at] == "":
                filled = at if blank_rows else _next_filled(lines, at)
                if blank_rows or _is_next_cue(lines, filled, timing):
                    break
                rows += lines[at:filled]
                at = filled
            else:
                rows.append(lines[at])
                at += 1
        else:
            if at < len(lines) and rows and rows[-1].strip().isdigit():  # no empty line before the next cue's number
                rows.pop()
        while rows and rows[-1] == "":
            rows.pop()
        groups = match.groups()
        yield _seconds(groups[:4]), _seconds(groups[4:]), rows


def _next_filled(lines: Sequence[str], at: int) -> int:
    while at < len(lines) and lines[at] == "":
        at += 1
    return at


def _is_next_cue(lines: Sequence[str], at: int, timing: re.Pattern[str]) -> bool:
    """Say whether a cue begins here, with a timing or a number before it (or nothing is left)."""
    if at >= len(lines) or timing.match(lines[at]):
        return True
    return lines[at].strip().isdigit() and at + 1 < len(lines) and bool(timing.match(lines[at + 1]))


def _vtt_row(line: str) -> Row:
    times = _WORD_TIME.findall(line)
    voice = _VOICE.search(line)
    speaker = html.unescape(voice[1]).strip() if voice else ""
    text = html.unescape(_VTT_TAG.sub("", line)).replace("\u200b", "")
    return Row(text, bool(times), speaker, _seconds(times[-1]) if times else None)


def _seconds(clock: Sequence[str | None]) -> float:
    hours, minutes, seconds, fraction = clock
    return (
        int(hours or 0) * 3600
        + int(minutes or 0) * 60
        + int(seconds or 0)
        + int((fraction or "0").ljust(3, "0")) / 1000
    )


def _lines(text: str) -> list[str]:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _some(cues: list[Cue]) -> tuple[Cue, ...]:
    if not cues:
        raise ValueError("no cue in a caption file")
    return tuple(cues)
