"""De-rolling recovers the spoken words exactly, whatever was said and however it was exported."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.captions import Spoken, json3, rolled_srt, rolled_vtt, speak, srv3, whisper

from isthmus.data.prepare.config import TranscriptsConfig
from isthmus.data.transcripts.document import parse_track
from isthmus.data.transcripts.rolling import spoken_phrases

WORD = st.one_of(
    st.sampled_from(
        ["no", "yes", "the", "1", "12", "&", "<i>", "-->", "a-->b", "WEBVTT", "NOTE", "&amp;", ">>", "[x]"]
    ),
    st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=6),
)
PHRASES = st.lists(st.tuples(st.lists(WORD, min_size=1, max_size=5), st.booleans()), min_size=1, max_size=12)
RENDERERS = {
    "tagged": lambda spoken: rolled_vtt(spoken, tags=True),
    "stripped": lambda spoken: rolled_vtt(spoken, tags=False),
    "srt": rolled_srt,
    "json3": json3,
    "srv3": srv3,
    "whisper": whisper,
}


def recovered(content: bytes) -> list[str]:
    phrases, _ = spoken_phrases(parse_track(content, TranscriptsConfig()))
    return [word for phrase in phrases for word in phrase.text.split()]


def words(spoken: list[Spoken]) -> list[str]:
    return [word for phrase in spoken for word in phrase.words]


@pytest.mark.parametrize("renderer", RENDERERS)
@settings(deadline=None, max_examples=150)
@given(phrases=PHRASES)
def test_the_words_come_back_exactly(renderer: str, phrases: list[tuple[list[str], bool]]) -> None:
    if renderer == "srt":  # SubRip cannot escape its marks
        phrases = [
            ([word.replace("<", "").replace("{", "").replace("-->", "") or "x" for word in part], cleared)
            for part, cleared in phrases
        ]
    spoken = speak(phrases)
    assert recovered(RENDERERS[renderer](spoken)) == words(spoken)


@pytest.mark.parametrize("renderer", ["tagged", "stripped", "srt"])
def test_repeated_phrases_are_neither_lost_nor_doubled(renderer: str) -> None:
    spoken = speak([(["no"], False), (["no"], False), (["no", "no"], False), (["no"], True), (["no"], False)])
    assert recovered(RENDERERS[renderer](spoken)) == ["no"] * 6


def test_captions_by_hand_that_repeat_a_line_are_left_alone() -> None:
    cues = "".join(f"00:00:0{n}.000 --> 00:00:0{n}.900\nNo.\n\n" for n in range(6))
    assert recovered(b"WEBVTT\n\n" + cues.encode()) == ["No."] * 6
    two = "".join(f"00:00:0{n}.000 --> 00:00:0{n}.900\n- Who?\n- You {n}.\n\n" for n in range(6))
    assert len(recovered(b"WEBVTT\n\n" + two.encode())) == 6 * 5


def test_rolled_captions_without_short_cues_are_known_by_their_rows() -> None:
    rows = [f"phrase number {n}" for n in range(6)]
    cues = "".join(
        f"00:00:{n:02d}.000 --> 00:00:{n + 1:02d}.000\n" + (f"{rows[n - 1]}\n" if n else "") + f"{rows[n]}\n\n"
        for n in range(6)
    )
    assert recovered(b"WEBVTT\n\n" + cues.encode()) == " ".join(rows).split()


def test_phrases_carry_the_times_of_their_words() -> None:
    spoken = speak([(["one", "two", "three"], False), (["four", "five"], True)])
    for renderer in ("tagged", "json3", "srv3"):
        phrases, _ = spoken_phrases(parse_track(RENDERERS[renderer](spoken), TranscriptsConfig()))
        phrases = [phrase for phrase in phrases if phrase.text.strip()]
        assert [phrase.start for phrase in phrases] == pytest.approx([0.0, 2.2])
        assert phrases[0].end == pytest.approx(1.3 if renderer != "tagged" else 1.19)
