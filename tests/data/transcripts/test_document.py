"""From captions to a document: cleaning, paragraphs, confidence, tracks and metadata."""

import dataclasses
from pathlib import Path

import pytest
from support.captions import json3, rolled_vtt, speak, whisper

from isthmus.data.prepare.config import TranscriptsConfig
from isthmus.data.readers.records import Form, Record
from isthmus.data.transcripts.cleaning import ANOTHER_SPEAKER, clean
from isthmus.data.transcripts.cues import Phrase
from isthmus.data.transcripts.document import Transcript, Video, load_videos, transcript_of
from isthmus.data.transcripts.passages import is_punctuated, join_phrases, render
from isthmus.data.transcripts.tracks import read_name, unused_tracks
from isthmus.errors import UserError

VIDEOS = {"abc123": Video("A talk", "A channel", "en", "CC-BY")}


def transcript(content: bytes, name: str = "talk [abc123].en.vtt", **options: object) -> Transcript | str:
    record = Record(name, 0, Form.captions, content)
    return transcript_of(record, VIDEOS, dataclasses.replace(TranscriptsConfig(), **options))


CLEANED = {
    "[Applause] Thank you.": ("Thank you.", ""),
    "(laughs) Well (that is, perhaps) no.": ("Well (that is, perhaps) no.", ""),
    "(DOOR CLOSES) Hello": ("Hello", ""),
    ">> So what?": ("So what?", ANOTHER_SPEAKER),
    "- No.": ("No.", ANOTHER_SPEAKER),
    ">> DR. SMITH: Yes: indeed": ("Yes: indeed", "DR. SMITH"),
    "Anna Berg: Hello": ("Hello", "Anna Berg"),
    "note: this stays": ("note: this stays", ""),
    "♪ la la la ♪ and he said": ("and he said", ""),
    "♪ a song that goes on": None,
    "[Music]": None,
    "a well-known thing": ("a well-known thing", ""),
}


@pytest.mark.parametrize("text", CLEANED)
def test_what_was_not_said_is_removed(text: str) -> None:
    found = clean(Phrase(0, 1, text), stage_directions=True, music=True)
    assert (found and (found.text, found.speaker)) == CLEANED[text]


def test_cleaning_can_be_turned_off() -> None:
    text = "[Music] ♪ la ♪ hey"
    assert clean(Phrase(0, 1, text), stage_directions=False, music=False) == Phrase(0, 1, text)


def test_paragraphs_begin_at_pauses_turns_and_after_enough_sentences() -> None:
    phrases = [
        Phrase(0, 1, "One sentence here."),
        Phrase(1, 2, "Another one."),
        Phrase(5, 6, "After a pause."),
        Phrase(6, 7, "A question?", ANOTHER_SPEAKER),
        Phrase(7, 8, "Ada speaks.", "ADA"),
        Phrase(8, 9, "And goes on"),
        Phrase(9, 10, "to the end.", "ADA"),
    ]
    passages = join_phrases(phrases, pause_seconds=2, paragraph_words=100)
    assert [(passage.text, passage.start) for passage in passages] == [
        ("One sentence here. Another one.", 0),
        ("After a pause.", 5),
        ("A question?", 6),
        ("Ada speaks. And goes on to the end.", 7),
    ]
    assert render(passages, speakers=True, time_marks=False).endswith("ADA: Ada speaks. And goes on to the end.")
    assert "[00:00:05] After" in render(passages, speakers=False, time_marks=True)
    short = join_phrases([Phrase(n, n + 1, f"Sentence {n}.") for n in range(6)], pause_seconds=9, paragraph_words=4)
    assert [len(passage.text.split()) for passage in short] == [4, 4, 4]


def test_unpunctuated_speech_is_kept_and_flagged() -> None:
    spoken = speak([([f"word{number}", "goes", "on"], number == 20) for number in range(40)])
    found = transcript(rolled_vtt(spoken, tags=True), pause_seconds=0.9)
    assert isinstance(found, Transcript)
    assert found.about["punctuated"] is False
    assert found.about["rolled"] is True
    assert found.text.split() == [word for phrase in spoken for word in phrase.words]
    assert found.text.count("\n\n") == 1, "the pause begins a paragraph"
    assert found.about | {"end": 0} == {
        "id": "abc123", "title": "A talk", "channel": "A channel", "licence": "CC-BY",
        "track": "vtt", "start": 0.0, "end": 0, "punctuated": False, "rolled": True,
    }  # fmt: skip
    assert is_punctuated([Phrase(0, 1, "It ends. Here too!")])


def shout(text: str) -> str:
    return text.upper() + "!"


def test_punctuation_can_be_restored_by_a_function_of_the_users() -> None:
    spoken = speak([(["so", "it", "goes"], False)] * 5)
    found = transcript(json3(spoken), punctuate=f"{__name__}:shout")
    assert isinstance(found, Transcript)
    assert found.text.endswith("GOES!")
    assert found.about["punctuation_restored"] is True


def test_heading_and_time_marks() -> None:
    spoken = speak([(["so", "it", "goes"], False)])
    found = transcript(json3(spoken), heading=True, time_marks=True)
    assert isinstance(found, Transcript)
    assert found.text == "A talk\nA channel\n\n[00:00:00] so it goes"
    assert found.spoken == "so it goes"


def test_segments_that_the_recogniser_doubts_are_dropped() -> None:
    spoken = speak([(["good", f"{number}"], False) for number in range(10)])
    assert transcript(whisper(spoken, avg_logprob=-2.0), "a.json") == "doubtful_segments"
    mixed = whisper(spoken).replace(b'"avg_logprob": -0.3', b'"avg_logprob": -2.0', 2)
    found = transcript(mixed, "a.json")
    assert isinstance(found, Transcript)
    assert len(found.text.split()) == 16
    assert transcript(json3(spoken), min_word_confidence=0.9) == "low_confidence"
    assert isinstance(transcript(json3(spoken), min_word_confidence=0.7), Transcript)


def test_a_track_of_music_alone_is_no_speech() -> None:
    assert transcript(b"WEBVTT\n\n00:01.000 --> 00:02.000\n[Music]\n") == "no_speech"


def test_names_tell_video_and_language() -> None:
    found = read_name("a/My talk [x-Y_9z4].pt-BR.vtt")
    assert (found.key, found.video, found.language) == ("a/My talk [x-Y_9z4]", "x-Y_9z4", "pt")
    assert read_name("v.en-orig.vtt").original
    assert read_name("v.de-en.json3").translated
    assert not read_name("v.en-US.json3").translated
    assert read_name("lecture.v2.srt").video == "lecture.v2"
    assert read_name("lecture.srt").language == ""


TRACKS = {
    "formats of one": (["v.en.vtt", "v.en.json3", "v.en.srt"], {}, {"v.en.json3"}),
    "original by name": (["v.en-orig.vtt", "v.de.vtt", "v.fr.vtt"], {}, {"v.en-orig.vtt"}),
    "by hand beside original": (["v.en-orig.vtt", "v.en.vtt"], {}, {"v.en.vtt"}),
    "original by metadata": (["v.en.vtt", "v.de.vtt"], {"v": "de-DE"}, {"v.de.vtt"}),
    "original is absent": (["v.en.vtt", "v.de.vtt"], {"v": "fr"}, {"v.en.vtt", "v.de.vtt"}),
    "unknown original": (["v.en.vtt", "v.de.vtt"], {}, {"v.en.vtt", "v.de.vtt"}),
    "marked as translated": (["v.en.vtt", "v.de-en.vtt"], {}, {"v.en.vtt"}),
    "translated alone": (["v.de-en.vtt"], {}, {"v.de-en.vtt"}),
    "without language": (["v.vtt", "v.de.vtt"], {"v": "en"}, {"v.vtt", "v.de.vtt"}),
    "two videos": (["v.en.vtt", "w.en.vtt"], {}, {"v.en.vtt", "w.en.vtt"}),
}


@pytest.mark.parametrize("case", TRACKS)
def test_one_track_of_a_video_is_used(case: str) -> None:
    names, languages, used = TRACKS[case]
    for order in (names, names[::-1]):
        unused = unused_tracks(order, languages, keep_translations=False)
        assert set(order) - set(unused) == used
    kept = set(names) - set(unused_tracks(names, languages, keep_translations=True))
    assert kept >= used


def test_metadata_that_is_wrong_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "videos.jsonl"
    path.write_text('{"id": "a", "license": "CC0"}\n\n{"title": "no id"}\n')
    with pytest.raises(UserError, match=r"videos\.jsonl:3"):
        load_videos(str(path), "data.sources.talks.metadata")
    path.write_text('{"id": 5, "license": "CC0"}\n')
    assert load_videos(str(path), "x") == {"5": Video(licence="CC0")}
    with pytest.raises(UserError, match="cannot be read"):
        load_videos(str(tmp_path / "absent"), "data.sources.talks.metadata")


def test_long_tracks_take_time_in_proportion() -> None:
    """Not timed: with a step that looks at everything before it, this would take minutes."""
    cue = "00:00:00.000 --> 00:00:01.000\n"
    many = "WEBVTT\n\n" + "".join(f"{cue}word{number}\n\n" for number in range(60_000))
    tall = "WEBVTT\n\n" + cue + "row\n" * 200_000
    blank = f"1\n{cue}begin\n" + "\n" * 200_000 + "end\n"
    for content, words in ((many, 60_000), (tall, 200_000), (blank, 2)):
        found = transcript(content.encode())
        assert isinstance(found, Transcript)
        assert len(found.text.split()) == words
