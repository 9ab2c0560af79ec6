"""One record at a time: what it becomes, and that nothing in it can stop a job."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import as_page, sample_pages

from isthmus.data.dedup.benchmarks import BenchmarkNgrams
from isthmus.data.filters.urls import UrlLists
from isthmus.data.prepare.config import PrepareData, PrepareSource, SourceKind
from isthmus.data.prepare.documents import Document, Dropped, Shared, build_chain
from isthmus.data.readers.records import Form, Record
from isthmus.data.transcripts.document import BadCaptions, Video

TIDES = sample_pages()["tides"]


def outcome(record: Record, kind: SourceKind, *, benchmarks: str = "", **changes: Any) -> Document | Dropped:
    source = PrepareSource(kind=kind, **changes)
    shared = Shared(UrlLists(), BenchmarkNgrams(iter([benchmarks]), 13), {"v": Video(title="\ud800", licence="\udfff")})
    return build_chain("a", source, PrepareData(sources={"a": source}), shared)(record)


def test_a_page_becomes_a_document_with_its_lineage() -> None:
    page = as_page("Tides", TIDES + "\n\nWrite to someone@home.org about it.")
    found = outcome(Record("a.warc", 7, Form.html, page, url="http://a/"), SourceKind.web)
    assert isinstance(found, Document)
    assert (found.file, found.offset, found.url, found.language) == ("a.warc", 7, "http://a/", "en")
    assert found.about == {"title": "Tides", "masked": 1}
    assert "someone@home.org" not in found.text
    assert "someone@home.org" in found.compared, "copies are compared before addresses are masked"
    elsewhere = outcome(Record("b.warc", 9, Form.html, page, url="http://b/"), SourceKind.web)
    assert isinstance(elsewhere, Document)
    assert elsewhere.text_hash == found.text_hash
    assert elsewhere.identity != found.identity
    assert elsewhere.text != found.text, "the replacement is the document's own"


def test_a_benchmark_is_kept_out_of_every_kind() -> None:
    question = " ".join(TIDES.split()[40:60])
    for kind in (SourceKind.web, SourceKind.text):
        found = outcome(Record("a", 0, Form.text, TIDES), kind, benchmarks=question)
        assert isinstance(found, Dropped)
        assert found.rule == "decontamination.benchmark"


def test_languages_of_a_source_win_over_those_of_its_kind() -> None:
    german = "Der alte Hafen liegt im Norden der Stadt, und die Boote warten auf die Flut. " * 3
    record = Record("a", 0, Form.text, german)
    found = outcome(record, SourceKind.web)
    assert isinstance(found, Dropped)
    assert found.rule == "language.other_language"
    assert outcome(record, SourceKind.web, languages=["de"]).rule != "language.other_language"  # type: ignore[union-attr]
    assert isinstance(outcome(record, SourceKind.text, languages=["de"]), Document)
    assert isinstance(outcome(record, SourceKind.text, languages=["en"]), Dropped)


@pytest.mark.parametrize("kind", SourceKind)
def test_halves_of_surrogate_pairs_stop_nothing(kind: SourceKind) -> None:
    words = " ".join(f"{word}\ud83d" for word in TIDES.split())
    about = {"id": "v", "license": "\ud800", "language": "\udc00"}
    found = outcome(Record("a", 0, Form.text, words, url="http://\ud800", about=about), kind)
    for value in vars_of(found):
        value.encode()
    if kind is SourceKind.transcripts:
        events = [
            {"tStartMs": n * 900, "dDurationMs": 900, "segs": [{"utf8": f"one two word{n}\ud83d"}]} for n in range(90)
        ]
        content = json.dumps({"events": events}).encode()
        found = outcome(Record("v.en.json3", 0, Form.captions, content), kind)
        assert isinstance(found, Document)
        for value in vars_of(found):
            value.encode()


def vars_of(found: Document | Dropped) -> list[str]:
    if isinstance(found, Dropped):
        return [found.rule, found.text]
    return [found.text, found.url, found.licence, found.language, found.file, json.dumps(found.about)]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    content=st.one_of(st.text(st.characters(), max_size=60), st.binary(max_size=60)),
    kind=st.sampled_from(list(SourceKind)),
    repeat=st.integers(1, 30),
)
def test_no_record_stops_a_job(content: str | bytes, kind: SourceKind, repeat: int) -> None:
    form = Form.text if isinstance(content, str) else Form.html if kind is SourceKind.web else Form.captions
    if form is Form.captions and kind is SourceKind.text:
        return
    try:
        found = outcome(Record("a.vtt", 0, form, content * repeat), kind)
    except BadCaptions:
        return
    assert isinstance(found, Document | Dropped)
