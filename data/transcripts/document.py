"""A caption file to a transcript: parse, unroll, clean, join."""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from isthmus.data.readers.files import open_file
from isthmus.data.readers.records import Form, Record, utf8
from isthmus.data.transcripts.cleaning import clean
from isthmus.data.transcripts.cues import Phrase, Track
from isthmus.data.transcripts.passages import is_punctuated, join_phrases, render
from isthmus.data.transcripts.rolling import spoken_phrases
from isthmus.data.transcripts.structured import parse_json, parse_xml
from isthmus.data.transcripts.textual import is_sbv, parse_sbv, parse_srt, parse_vtt
from isthmus.data.transcripts.tracks import read_name
from isthmus.errors import UserError


@dataclass(frozen=True, slots=True)
class Video:
    """A row of the metadata of a transcript source."""

    title: str = ""
    channel: str = ""
    language: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Transcript:
    """`text` is what the document says; `spoken` its words without headings, names and marks, for the rules."""

    text: str
    spoken: str
    seconds: float | None
    language: str
    about: dict[str, Any] = field(default_factory=dict)


class TranscriptOptions(Protocol):
    """The part of the configuration that decides what a transcript looks like."""

    stage_directions: bool
    music: bool
    speakers: bool
    pause_seconds: float
    paragraph_words: int
    time_marks: bool
    heading: bool
    punctuate: str | None
    max_compression_ratio: float
    min_log_probability: float
    max_no_speech: float
    max_bad_segments: float
    min_word_confidence: float


class BadCaptions(ValueError):
    """A file that is no caption track."""


def transcript_of(record: Record, videos: Mapping[str, Video], options: TranscriptOptions) -> Transcript | str:
    """Return a record's transcript, or the reason to drop it.

    Raises:
        BadCaptions: the record is no caption track.
    """
    if record.form is not Form.captions:
        content = record.content
        assert isinstance(content, str)
        video = videos.get(str(record.about.get("id", "")), Video())
        about = {**record.about, **_known(video)}
        language = str(record.about.get("language", "")) or video.language
        return Transcript(_heading(about, options) + content, content, None, _code(language), about)
    assert isinstance(record.content, bytes)
    track = parse_track(record.content, options)
    name = read_name(record.file)
    video = videos.get(name.video, Video())
    about = {"id": name.video, **_known(video), "track": track.format}
    bad = [cue.bad for cue in track.cues]
    if sum(bad) > options.max_bad_segments * len(bad):
        return "doubtful_segments"
    confidence = [value for cue in track.cues for value in cue.confidence]
    if confidence:
        about["word_confidence"] = round(sum(confidence) / len(confidence), 3)
        if about["word_confidence"] < options.min_word_confidence:
            return "low_confidence"
    phrases, rolled = spoken_phrases(track)
    kept = [phrase for phrase in (_clean(phrase, options) for phrase in phrases if not phrase.bad) if phrase]
    if not kept:
        return "no_speech"
    punctuated = is_punctuated(kept)
    about |= {
        "start": round(min(phrase.start for phrase in kept), 3),
        "end": round(max(phrase.end for phrase in kept), 3),
        "punctuated": punctuated,
    }
    if rolled:
        about["rolled"] = True
    passages = join_phrases(kept, pause_seconds=options.pause_seconds, paragraph_words=options.paragraph_words)
    if options.punctuate and not punctuated:
        restore = punctuation_restorer(options.punctuate)
        passages = [
            type(passage)(passage.start, passage.end, restore(passage.text), passage.speaker) for passage in passages
        ]
        about["punctuation_restored"] = True
    text = render(passages, speakers=options.speakers, time_marks=options.time_marks)
    spoken = "\n\n".join(passage.text for passage in passages)
    seconds = about["end"] - about["start"]
    language = video.language or track.language or name.language
    return Transcript(_heading(about, options) + text, spoken, seconds if seconds > 0 else None, _code(language), about)


def parse_track(content: bytes, options: TranscriptOptions) -> Track:
    """Return the track of a file, whose first characters tell the format.

    Raises:
        BadCaptions: it is none, or no text.
    """
    try:
        text = content.decode("utf-16") if content[:2] in (b"\xff\xfe", b"\xfe\xff") else utf8(content)
        start = text.lstrip("\ufeff \t\r\n")[:20]
        if start.startswith("WEBVTT"):
            return parse_vtt(text.lstrip("\ufeff \t\r\n"))
        if start.startswith(("{", "[{")):
            return parse_json(text, options.max_compression_ratio, options.min_log_probability, options.max_no_speech)
        if start.startswith("<"):
            return parse_xml(text.lstrip("\ufeff \t\r\n"))
        return parse_sbv(text) if is_sbv(text) else parse_srt(text)
    except (ValueError, RecursionError) as error:
        raise BadCaptions(" ".join(str(error).split())[:160]) from None


def load_videos(path: str | None, where: str) -> dict[str, Video]:
    """Read the JSONL of a source's videos.

    Raises:
        UserError: it cannot be read, or a line is no object with an id.
    """
    if path is None:
        return {}
    videos = {}
    try:
        with open_file(path if "://" in path else str(Path(path).expanduser())) as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise UserError(f"cannot be read: {error}", where=where, fix="give a JSONL file of videos") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(utf8(line))
            values = {name: str(row.get(name) or "") for name in ("title", "channel", "language")}
            videos[str(row["id"])] = Video(**values, licence=str(row.get("licence") or row.get("license") or ""))
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise UserError(
                'is no object with an "id"', where=f"{where}: {path}:{number}", fix="write one JSON object per line"
            ) from None
    return videos


@cache
def punctuation_restorer(name: str) -> Callable[[str], str]:
    """Return the function `MODULE:FUNCTION`, which takes unpunctuated text and returns it punctuated.

    Raises:
        UserError: there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found: Callable[[str], str] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot be imported: {error}", where="data.transcripts.punctuate", fix="give MODULE:FUNCTION"
        ) from None
    return found


def _clean(phrase: Phrase, options: TranscriptOptions) -> Phrase | None:
    return clean(phrase, stage_directions=options.stage_directions, music=options.music)


def _known(video: Video) -> dict[str, str]:
    values = {"title": video.title, "channel": video.channel, "licence": video.licence}
    return {name: value for name, value in values.items() if value}


def _heading(about: dict[str, Any], options: TranscriptOptions) -> str:
    lines = [str(about[name]) for name in ("title", "channel") if about.get(name)] if options.heading else []
    return "".join(f"{line}\n" for line in lines) + ("\n" if lines else "")


def _code(language: str) -> str:
    return language.partition("-")[0].lower()
