"""YouTube's json3, srv1 - srv3, TTML, and the JSON of Whisper and its relatives."""

import json
import re
from collections.abc import Iterator
from typing import Any

from isthmus.data.extras import need
from isthmus.data.transcripts.cues import Cue, Row, Track

_CLOCK = re.compile(r"^(?:(\d{1,5}):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9})|:(\d{1,3})(?:\.\d+)?)?$")
_OFFSET = re.compile(r"^(\d{1,12}(?:\.\d{1,9})?)(h|m|s|ms|f|t)$")
_FULL_CONFIDENCE = 255  # json3 and srv3 give confidences as bytes


def parse_json(text: str, max_compression: float, min_log_probability: float, max_no_speech: float) -> Track:
    """Return the cues of json3 or of a speech recogniser's JSON.

    Raises:
        ValueError: it is neither.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if isinstance(content, dict) and isinstance(content.get("events"), list):
        cues = list(_json3(content["events"]))
        return Track("json3", _some(cues), separate=True)
    segments = content.get("segments", content.get("transcription")) if isinstance(content, dict) else content
    if not isinstance(segments, list):
        raise ValueError("JSON that is neither json3 nor a list of segments")
    cues = [
        _segment(segment, max_compression, min_log_probability, max_no_speech)
        for segment in segments
        if isinstance(segment, dict)
    ]
    language = content.get("language") if isinstance(content, dict) else ""
    return Track("whisper", _some(cues), language if isinstance(language, str) else "", separate=True)


def parse_xml(text: str) -> Track:
    """Return the cues of srv1, srv2, srv3 or TTML.

    Raises:
        ValueError: it is no such file.
    """
    etree = need("lxml.etree")
    # No entities, no network, no huge trees: hostile files stay small.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False, recover=True)
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"no XML: {error}") from None
    if root is None:
        raise ValueError("no XML")
    name = _local(root)
    language = root.get("{http://www.w3.org/XML/1998/namespace}lang", "")
    if name == "transcript":
        return Track("srv1", _some([_timed(node, "start", "dur", 1.0) for node in root.iter("text")]))
    if name == "timedtext":
        if root.get("format") == "3" or root.find("body") is not None:
            return Track("srv3", _some([_srv3(node) for node in root.iter("p")]), separate=True)
        return Track("srv2", _some([_timed(node, "t", "d", 0.001) for node in root.iter("text")]))
    if name == "tt":
        rates = (_rate(root, "frameRate", 30.0), _rate(root, "tickRate", 1.0))
        nodes = [node for node in root.iter() if _local(node) == "p"]
        return Track("ttml", _some([_ttml(node, *rates) for node in nodes]), language)
    raise ValueError(f"XML of an unknown kind: <{name[:40]}>")


def _json3(events: list[Any]) -> Iterator[Cue]:
    for event in events:
        segments = event.get("segs") if isinstance(event, dict) else None
        if not isinstance(segments, list):
            continue  # the definition of a window, or its end
        parts = [part for part in segments if isinstance(part, dict) and isinstance(part.get("utf8"), str)]
        start = _number(event.get("tStartMs")) / 1000
        offsets = [_number(part.get("tOffsetMs")) / 1000 for part in parts if part["utf8"].strip()]
        text = "".join(part["utf8"] for part in parts)
        timed = len(offsets) > 1
        last = start + offsets[-1] if timed else None
        confidence = tuple(
            min(1.0, _number(part["acAsrConf"]) / _FULL_CONFIDENCE) for part in parts if part.get("acAsrConf")
        )
        rows = tuple(Row(line, timed, "", last) for line in text.split("\n"))
        end = start + _number(event.get("dDurationMs")) / 1000
        yield Cue(start, end, rows, append=bool(event.get("aAppend")), confidence=confidence)


def _segment(segment: dict[str, Any], max_compression: float, min_log_probability: float, max_no_speech: float) -> Cue:
    """One segment of Whisper (seconds), or of whisper.cpp (`offsets` in milliseconds)."""
    offsets = segment.get("offsets")
    if isinstance(offsets, dict):
        start, end = _number(offsets.get("from")) / 1000, _number(offsets.get("to")) / 1000
    else:
        start, end = _number(segment.get("start")), _number(segment.get("end"))
    text = segment.get("text")
    words = segment.get("words")
    confidence = tuple(
        _number(word.get("probability", word.get("score")))
        for word in (words if isinstance(words, list) else [])
        if isinstance(word, dict) and ("probability" in word or "score" in word)
    )
    speaker = segment.get("speaker")
    bad = (
        _number(segment.get("compression_ratio")) > max_compression
        or _number(segment.get("avg_logprob")) < min_log_probability
        or _number(segment.get("no_speech_prob")) > max_no_speech
    )
    row = Row(text if isinstance(text, str) else "", speaker=speaker if isinstance(speaker, str) else "")
    return Cue(start, end, (row,), confidence=confidence, bad=bad)


def _srv3(node: Any) -> Cue:
    start = _number(node.get("t")) / 1000
    words = node.findall("s")
    text = "".join(node.itertext())
    offsets = [_number(word.get("t")) / 1000 for word in words]
    timed = len(words) > 1
    confidence = tuple(min(1.0, _number(word.get("ac")) / _FULL_CONFIDENCE) for word in words if word.get("ac"))
    rows = tuple(Row(line, timed, "", start + offsets[-1] if timed else None) for line in text.split("\n"))
    return Cue(
        start,
        start + _number(node.get("d")) / 1000,
        rows,
        append=node.get("a") == "1",
        confidence=confidence if any(confidence) else (),
    )


def _timed(node: Any, start: str, duration: str, unit: float) -> Cue:
    import html

    begin = _number(node.get(start)) * unit
    text = html.unescape("".join(node.itertext()))  # srv1 escapes twice
    return Cue(begin, begin + _number(node.get(duration)) * unit, tuple(Row(line) for line in text.split("\n")))


def _ttml(node: Any, frame_rate: float, tick_rate: float) -> Cue:
    parts = [""]
    for event, part in need("lxml.etree").iterwalk(node, events=("start", "end")):
        if event == "start":
            if _local(part) == "br":
                parts.append("")
            elif _local(part) != "metadata":
                parts[-1] += part.text or ""
        elif part is not node:
            parts[-1] += part.tail or ""
    start = _ttml_time(node.get("begin"), frame_rate, tick_rate)
    end = _ttml_time(node.get("end"), frame_rate, tick_rate)
    if node.get("end") is None:
        end = start + _ttml_time(node.get("dur"), frame_rate, tick_rate)
    # White space in XML means nothing but a space, unless xml:space says so.
    return Cue(start, end, tuple(Row(" ".join(part.split())) for part in parts))


def _ttml_time(value: str | None, frame_rate: float, tick_rate: float) -> float:
    """Read a time expression of TTML2, section 12.3.1."""
    if not value:
        return 0.0
    if match := _CLOCK.match(value.strip()):
        hours, minutes, seconds, fraction, frames = match.groups()
        whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
        return whole + (float(f"0.{fraction}") if fraction else 0.0) + (int(frames) / frame_rate if frames else 0.0)
    if match := _OFFSET.match(value.strip()):
        unit = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "f": 1 / frame_rate, "t": 1 / tick_rate}[match[2]]
        return float(match[1]) * unit
    return 0.0


def _rate(root: Any, name: str, default: float) -> float:
    for key, value in root.attrib.items():
        if key.endswith(f"}}{name}") and re.fullmatch(r"\d{1,9}", value) and int(value):
            return float(value)
    return default


def _local(node: Any) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _number(value: Any) -> float:
    """Return a finite number that is not absurd; what is none counts as 0."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if -1e12 < number < 1e12 else 0.0


def _some(cues: list[Cue]) -> tuple[Cue, ...]:
    if not cues:
        raise ValueError("no cue in a caption file")
    return tuple(cues)
