"""Reading sources: captions, JSON lines, folders, the embedded corpus, and the split of what is held out."""

import json
import random
from importlib import resources
from pathlib import Path

import pytest

from isthmus.data.documents import EMBEDDED, Document, read_source, split_held_out, transcript_text
from isthmus.errors import UserError

_VTT = """WEBVTT - a talk
Kind: captions

NOTE
this is for editors

STYLE
::cue { color: red }

intro-1
00:00:01.000 --> 00:00:02.500 align:start position:0%
<v Ada>Good <i>evening</i>,
everybody.

00:02.500 --> 00:04.000
<v Ada>Sit down.

00:00:04.000 --> 00:00:05.000
<v.loud Bob Ray>Thank <00:00:04.500><c.red>you</c>!
"""
_SRT = """1
00:00:01,000 --> 00:00:02,000
ADA: Where is
the key?

2
00:00:02,000 --> 00:00:03,000
Nobody knows.

3
00:00:03,000 --> 00:00:04,000
DR. O'NEIL-ROSS: 42 people: all gone.
"""
_VTT_TEXT = "Ada: Good evening, everybody. Sit down.\n\nBob Ray: Thank you!"
_SRT_TEXT = "ADA: Where is the key? Nobody knows.\n\nDR. O'NEIL-ROSS: 42 people: all gone."


@pytest.mark.parametrize(("captions", "text"), [(_VTT, _VTT_TEXT), (_SRT, _SRT_TEXT)])
def test_captions_become_paragraphs_of_speech(captions: str, text: str) -> None:
    assert transcript_text(captions) == text
    assert transcript_text(captions.replace("\n", "\r\n")) == text
    assert transcript_text("\ufeff" + captions) == text


def test_escapes_of_webvtt_are_resolved() -> None:
    assert transcript_text("WEBVTT\n\n00:01.000 --> 00:02.000\nR&amp;D, 1 &lt; 2\n") == "R&D, 1 < 2"


def test_files_of_every_kind_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("plain text ä", encoding="utf-8")
    (tmp_path / "b.md").write_text("# title")
    (tmp_path / "c.jsonl").write_text('{"text": "one", "id": 7}\n{"text": "two"}\n')
    (tmp_path / "d.vtt").write_text(_VTT)
    (tmp_path / "e.srt").write_text(_SRT)
    (tmp_path / "f.bin").write_bytes(b"\xff\x00")
    (tmp_path / "g.txt").write_text("  \n")  # empty: dropped
    assert read_source("mine", str(tmp_path)) == [
        Document("b.md", "# title"),
        Document("c.jsonl:1", "one"),
        Document("c.jsonl:2", "two"),
        Document("d.vtt", _VTT_TEXT),
        Document("deep/a.txt", "plain text ä"),
        Document("e.srt", _SRT_TEXT),
    ]
    assert read_source("mine", str(tmp_path / "*" / "a.txt")) == [Document("deep/a.txt", "plain text ä")]


def test_documents_of_a_glob_have_identities_of_their_own(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text(f"notes of {folder}")
    train, held_out = split_held_out(read_source("mine", str(tmp_path / "*" / "notes.txt")), 0.1)
    assert (len(train), len(held_out)) == (1, 1)


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"txt": "x"}',
        "[1]",
        "7",
        '{"text": 5}',
        '{"text": null}',
    ],
)
def test_bad_json_line_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2: "):
        read_source("mine", str(file))


def test_json_strings_may_hold_any_line_separator(tmp_path: Path) -> None:
    text = "first\u2028second\u0085third"
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [document.text for document in read_source("mine", str(file))] == [text]


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sources\.mine: has no path.*web, transcripts, synthetic"):
        read_source("mine", None)
    with pytest.raises(UserError, match=r"data\.sources\.mine\.path: nothing to read at .*nowhere"):
        read_source("mine", str(tmp_path / "nowhere"))
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"data\.sources\.mine\.path: is empty"):
        read_source("mine", str(tmp_path / "blank.txt"))
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt: cannot be read.*UTF-8"):
        read_source("mine", str(tmp_path / "latin.txt"))


def _documents(count: int) -> list[Document]:
    rng = random.Random(0)
    return [Document(f"doc-{number}", "x" * rng.randint(50, 150)) for number in range(count)]


def test_held_out_does_not_depend_on_the_order() -> None:
    documents = _documents(200)
    train, held_out = split_held_out(documents, 0.1)
    assert sorted(document.identity for document in train + held_out) == sorted(d.identity for d in documents)
    shuffled = random.Random(1).sample(documents, len(documents))
    assert {document.identity for document in split_held_out(shuffled, 0.1)[1]} == {d.identity for d in held_out}


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.4])
def test_held_out_is_about_the_fraction_asked_for(fraction: float) -> None:
    documents = _documents(1_000)
    _, held_out = split_held_out(documents, fraction)
    size = sum(len(document.text) for document in documents)
    share = sum(len(document.text) for document in held_out) / size
    assert fraction <= share <= fraction + 150 / size  # at most one document (of 150 characters at most) too many


@pytest.mark.parametrize(("count", "fraction", "held_out"), [(2, 0.01, 1), (2, 0.49, 1), (1, 0.1, 0), (9, 0.0, 0)])
def test_held_out_of_few_documents(count: int, fraction: float, held_out: int) -> None:
    train, chosen = split_held_out(_documents(count), fraction)
    assert (len(train), len(chosen)) == (count - held_out, held_out)


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_embedded_sources_are_text_and_the_same_twice(name: str) -> None:
    documents = read_source(name, None)
    assert len(documents) >= 20
    assert len({document.identity for document in documents}) == len(documents)
    if name != "web":  # reading the standard library takes a second
        assert read_source(name, None) == documents


_TALKS = sorted(entry.name for entry in (resources.files("isthmus.data") / "samples" / "transcripts").iterdir())


@pytest.mark.parametrize("name", _TALKS)
def test_every_shipped_transcript_is_a_talk(name: str) -> None:
    text = transcript_text((resources.files("isthmus.data") / "samples" / "transcripts" / name).read_text("utf-8"))
    assert len(text.split()) > 300
    for rest in ("-->", "WEBVTT", "NOTE", "<v", "</"):
        assert rest not in text
