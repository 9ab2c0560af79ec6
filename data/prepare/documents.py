"""What a record becomes: a document with its lineage, or a drop with the rule that made it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from isthmus.data.dedup.benchmarks import BenchmarkNgrams
from isthmus.data.filters.c4 import c4
from isthmus.data.filters.config import LanguageRules, PiiRules
from isthmus.data.filters.fineweb import fineweb, line_punctuation
from isthmus.data.filters.gopher import gopher_quality, gopher_repetition, mean_word_length
from isthmus.data.filters.language import identify, language_rule
from isthmus.data.filters.normalise import normalise, whole
from isthmus.data.filters.pii import mask
from isthmus.data.filters.speech import transcript_rule
from isthmus.data.filters.text import TextView
from isthmus.data.filters.urls import UrlLists, url_rule
from isthmus.data.prepare.config import PrepareData, PrepareSource, SourceKind
from isthmus.data.readers.records import Form, Record
from isthmus.data.transcripts.document import Video, transcript_of
from isthmus.data.web.extract import extract, page_hash

Measures = dict[str, int]  # name: bin of its histogram


@dataclass(frozen=True, slots=True)
class Document:
    """A document that every rule let pass.

    `identity` is the 16-byte hash of where it lay and what it says; `text_hash` and `compared` are of the text before
    addresses were masked, so that masking cannot make copies differ.
    """

    identity: bytes
    text: str
    text_hash: bytes
    compared: str
    page: bytes
    file: str
    offset: int
    url: str
    licence: str
    language: str
    language_score: float
    about: dict[str, Any]
    measures: Measures


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that a rule drops: `rule` is GROUP.REASON."""

    rule: str
    record: Record
    text: str = ""
    measures: Measures = field(default_factory=dict)


@dataclass(frozen=True)
class Shared:
    """What the documents of all units are held against; loaded once in each process."""

    urls: UrlLists
    benchmarks: BenchmarkNgrams
    videos: dict[str, Video] = field(default_factory=dict)


Chain = Callable[[Record], Document | Dropped]


def warm_up() -> None:
    """Load what the first document would load, so that it is not charged with it."""
    extract(b"<html><body><p>warm up</p></body></html>", "", max_bytes=1000, max_nodes=100)
    normalise("w\u00e4rm")
    identify("warm up")


def build_chain(name: str, source: PrepareSource, config: PrepareData, shared: Shared) -> Chain:
    """Return the function that turns a source's records into documents."""
    steps = {SourceKind.web: _web, SourceKind.transcripts: _transcripts, SourceKind.text: _text}[source.kind]

    def chain(record: Record) -> Document | Dropped:
        if record.form is Form.other:
            return Dropped(f"answer.{record.about['rule']}", record)
        return steps(name, source, config, shared, record)

    return chain


def _web(name: str, source: PrepareSource, config: PrepareData, shared: Shared, record: Record) -> Document | Dropped:
    web = config.web
    if web.urls.enabled and (reason := url_rule(record.url, shared.urls)):
        return Dropped(f"url.{reason}", record)
    about = dict(record.about)
    if isinstance(record.content, bytes):
        found = extract(record.content, record.charset, max_bytes=web.max_page_bytes, max_nodes=web.max_page_nodes)
        if isinstance(found, str):
            return Dropped(f"extraction.{found}", record)
        text = found.text
        if found.title:
            about["title"] = found.title
    else:
        text = record.content
    text = whole(text)
    if web.normalise:
        text = normalise(text)
    view = TextView(text)
    language, score, reason = _language(text, web.language, source)
    measures = _measures(view, score)
    if (
        not reason
        and web.gopher_repetition.enabled
        and (found_reason := gopher_repetition(view, web.gopher_repetition))
    ):
        reason = f"gopher_repetition.{found_reason}"
    if not reason and web.gopher_quality.enabled and (found_reason := gopher_quality(view, web.gopher_quality)):
        reason = f"gopher_quality.{found_reason}"
    if not reason and web.c4.enabled:
        remaining, found_reason = c4(view, web.c4)
        if found_reason:
            reason = f"c4.{found_reason}"
        elif remaining != text:
            text, view = remaining, TextView(remaining)
    if not reason and web.fineweb.enabled and (found_reason := fineweb(view, web.fineweb)):
        reason = f"fineweb.{found_reason}"
    if reason:
        return Dropped(reason, record, text, measures)
    pii = web.pii if web.mask_pii else None
    return _finish(name, source, shared, record, text, (language, score), about, measures, pii)


def _transcripts(
    name: str, source: PrepareSource, config: PrepareData, shared: Shared, record: Record
) -> Document | Dropped:
    rules = config.transcripts
    found = transcript_of(record, shared.videos, rules)
    if isinstance(found, str):
        return Dropped(f"transcript.{found}", record)
    text, spoken = normalise(whole(found.text)), TextView(whole(found.spoken))
    view = TextView(text)
    language, score, reason = _language(spoken.text, rules.language, source)
    measures = _measures(view, score)
    if not reason and not text:
        reason = "transcript.no_speech"
    if not reason and rules.rules.enabled and (found_reason := transcript_rule(spoken, found.seconds, rules.rules)):
        reason = f"speech.{found_reason}"
    if reason:
        return Dropped(reason, record, text, measures)
    pii = rules.pii if rules.mask_pii else None
    languages = (found.language or language, score)
    return _finish(name, source, shared, record, text, languages, found.about, measures, pii)


def _text(name: str, source: PrepareSource, config: PrepareData, shared: Shared, record: Record) -> Document | Dropped:
    assert isinstance(record.content, str)
    text = whole(record.content)
    if config.text.normalise:
        text = normalise(text)
    if not text.strip():
        return Dropped("text.empty", record)
    language, score, reason = "", 0.0, ""
    if source.languages is not None:
        language, score, reason = _language(text, LanguageRules(), source)
    measures = _measures(TextView(text), score)
    if reason:
        return Dropped(reason, record, text, measures)
    pii = config.text.pii if config.text.mask_pii else None
    return _finish(name, source, shared, record, text, (language, score), dict(record.about), measures, pii)


def _language(text: str, rules: LanguageRules, source: PrepareSource) -> tuple[str, float, str]:
    """Return (language, score, rule that drops it or "")."""
    if not rules.enabled:
        return "", 0.0, ""
    language, score = identify(text)
    keep = rules.keep if source.languages is None else source.languages
    reason = language_rule(language, score, LanguageRules(keep=list(keep), min_score=rules.min_score))
    if not keep:
        reason = None  # every language is kept, and a doubtful one too
    return language, score, f"language.{reason}" if reason else ""


def _finish(
    name: str,
    source: PrepareSource,
    shared: Shared,
    record: Record,
    text: str,
    language: tuple[str, float],
    about: dict[str, Any],
    measures: Measures,
    pii: PiiRules | None,
) -> Document | Dropped:
    if hit := shared.benchmarks.match(text):
        return Dropped("decontamination.benchmark", record, hit, measures)
    encoded = text.encode()
    place = f"{name}\0{record.file}\0{record.offset}\0".encode("utf-8", "surrogatepass")
    identity = hashlib.blake2b(place + encoded, digest_size=16).digest()
    masked = text
    if pii is not None:
        masked, replaced = mask(text, identity, pii)
        if replaced:
            about["masked"] = replaced
    licence = about.pop("licence", None) or about.pop("license", None) or source.licence or ""
    return Document(
        identity=identity,
        text=masked,
        text_hash=hashlib.blake2b(encoded, digest_size=16).digest(),
        compared=text,
        page=content_hash(record),
        file=record.file,
        offset=record.offset,
        url=whole(record.url),
        licence=whole(str(licence)),
        language=whole(language[0]),
        language_score=language[1],
        about=json.loads(json.dumps(about)),
        measures=measures,
    )


def content_hash(record: Record) -> bytes:
    """Return the hash of a record's content as it was read."""
    content = record.content
    return page_hash(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))


def _measures(view: TextView, score: float) -> Measures:
    """Return bins for the report: quarter powers of two for lengths, twentieths of fractions."""
    measures = {
        "characters": (len(view.text) ** 4).bit_length(),
        "mean_word_length": min(40, int(mean_word_length(view) * 2)),
        "line_punctuation": int(line_punctuation(view) * 20),
    }
    return {**measures, "language_score": int(score * 20)} if score else measures
