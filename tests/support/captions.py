"""Captions for tests, written from the formats' specifications and from how YouTube's automatic captions roll."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass

PAUSE = 1.0  # seconds between phrases where the window was cleared


@dataclass(frozen=True)
class Spoken:
    """A phrase: words and the second at which each begins; `cleared` where the window was empty before it."""

    words: tuple[str, ...]
    starts: tuple[float, ...]
    end: float
    cleared: bool = False

    @property
    def text(self) -> str:
        return " ".join(self.words)


def speak(phrases: Sequence[tuple[Sequence[str], bool]]) -> list[Spoken]:
    """Give words times: 0.4 s a word, and a pause before phrases that begin in an empty window."""
    spoken = []
    now = 0.0
    for words, cleared in phrases:
        now += PAUSE if cleared and spoken else 0.0
        starts = tuple(round(now + 0.4 * number, 3) for number in range(len(words)))
        now = round(now + 0.4 * len(words), 3)
        spoken.append(Spoken(tuple(words), starts, now, cleared or not spoken))
    return spoken


def rolled_cues(spoken: Sequence[Spoken], *, tags: bool, escape: bool) -> list[tuple[float, float, list[str]]]:
    """Return cues as YouTube makes them: old row and new row, then the new row alone for 10 ms."""
    cues = []
    before = " "
    for phrase in spoken:
        words = [html.escape(word, quote=False) if escape else word for word in phrase.words]
        new = words[0]
        for word, start in zip(words[1:], phrase.starts[1:], strict=True):
            new += f"<{clock(start)}><c> {word}</c>" if tags else f" {word}"
        plain = " ".join(words)
        cues.append((phrase.starts[0], phrase.end - 0.01, [" " if phrase.cleared else before, new]))
        cues.append((phrase.end - 0.01, phrase.end, [plain, " "]))
        before = plain
    return cues


def rolled_vtt(spoken: Sequence[Spoken], *, tags: bool) -> bytes:
    parts = ["WEBVTT\nKind: captions\nLanguage: en\n"]
    for start, end, rows in rolled_cues(spoken, tags=tags, escape=True):
        parts.append(f"{clock(start)} --> {clock(end)} align:start position:0%\n" + "\n".join(rows) + "\n")
    return "\n".join(parts).encode()


def rolled_srt(spoken: Sequence[Spoken]) -> bytes:
    parts = []
    for number, (start, end, rows) in enumerate(rolled_cues(spoken, tags=False, escape=False), start=1):
        parts.append(f"{number}\n{clock(start, ',')} --> {clock(end, ',')}\n" + "\n".join(rows) + "\n")
    return "\n".join(parts).encode()


def json3(spoken: Sequence[Spoken]) -> bytes:
    events: list[dict] = [{"tStartMs": 0, "dDurationMs": 9_000_000, "id": 1, "wpWinPosId": 1, "wsWinStyleId": 1}]
    for number, phrase in enumerate(spoken):
        begin = round(phrase.starts[0] * 1000)
        if number and not phrase.cleared:
            events.append(
                {"tStartMs": begin - 10, "dDurationMs": 2000, "wWinId": 1, "aAppend": 1, "segs": [{"utf8": "\n"}]}
            )
        segments: list[dict] = []
        for place, (word, start) in enumerate(zip(phrase.words, phrase.starts, strict=True)):
            segment = {"utf8": f" {word}" if place else word, "acAsrConf": 200}
            if place:
                segment["tOffsetMs"] = round(start * 1000) - begin
            segments.append(segment)
        duration = round(phrase.end * 1000) - begin + 2000
        events.append({"tStartMs": begin, "dDurationMs": duration, "wWinId": 1, "segs": segments})
    return json.dumps({"wireMagic": "pb3", "pens": [{}], "wsWinStyles": [{}], "events": events}).encode()


def srv3(spoken: Sequence[Spoken]) -> bytes:
    parts = ['<?xml version="1.0" encoding="utf-8" ?><timedtext format="3">\n<head><ws id="0"/></head><body>\n']
    parts.append('<w t="0" id="1" wp="1" ws="1"/>\n')
    for number, phrase in enumerate(spoken):
        begin = round(phrase.starts[0] * 1000)
        if number and not phrase.cleared:
            parts.append(f'<p t="{begin - 10}" d="2000" w="1" a="1">\n</p>\n')
        words = "".join(
            f'<s t="{round(start * 1000) - begin}" ac="200">{" " if place else ""}{html.escape(word)}</s>'
            for place, (word, start) in enumerate(zip(phrase.words, phrase.starts, strict=True))
        )
        parts.append(f'<p t="{begin}" d="{round(phrase.end * 1000) - begin + 2000}" w="1">{words}</p>\n')
    return ("".join(parts) + "</body></timedtext>").encode()


def whisper(spoken: Sequence[Spoken], **more: object) -> bytes:
    segments = [
        {
            "id": number,
            "start": phrase.starts[0],
            "end": phrase.end,
            "text": f" {phrase.text}",
            "avg_logprob": -0.3,
            "compression_ratio": 1.4,
            "no_speech_prob": 0.01,
            **more,
        }
        for number, phrase in enumerate(spoken)
    ]
    return json.dumps({"text": "", "segments": segments, "language": "en"}).encode()


def clock(seconds: float, point: str = ".") -> str:
    thousandths = round(seconds * 1000)
    return (
        f"{thousandths // 3_600_000:02d}:{thousandths // 60_000 % 60:02d}:{thousandths // 1000 % 60:02d}"
        f"{point}{thousandths % 1000:03d}"
    )
