"""Every layout of caption files that the formats allow, and none that crashes a parser."""

import contextlib
import io
import json

import pytest
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from support.captions import json3, rolled_srt, rolled_vtt, speak, srv3, whisper

from isthmus.data.prepare.config import TranscriptsConfig
from isthmus.data.transcripts.cues import Track
from isthmus.data.transcripts.document import BadCaptions, parse_track

OPTIONS = TranscriptsConfig()


def cues(content: bytes | str) -> list[tuple[float, float, list[str]]]:
    track = parse_track(content.encode() if isinstance(content, str) else content, OPTIONS)
    return [(cue.start, cue.end, [row.text for row in cue.rows]) for cue in track.cues]


VTT = """\
WEBVTT - a title
Kind: captions
Language: de

STYLE
::cue { color: red }

REGION
id:left

NOTE a comment
00:00 is no timing here

intro
00:01.000 --> 01:00:02.500 line:0 position:20%
<v.loud Ada Lovelace>Ich &amp; <i.x>du</i></v>

00:00:03.000 --> 00:00:04.000
<c.yellow>eins</c> <lang en>two</lang>
<ruby>kan<rt>ji</rt></ruby> &lt;b&gt;

2
00:00:05.000 --> 00:00:06.000
hello<00:00:05.200><c> and</c><00:00:05.400><c> bye</c>
"""


def test_webvtt() -> None:
    track = parse_track(VTT.replace("\n", "\r\n").encode("utf-8-sig"), OPTIONS)
    assert (track.format, track.language) == ("vtt", "de")
    assert cues(VTT) == [
        (1.0, 3602.5, ["Ich & du"]),
        (3.0, 4.0, ["eins two", "kanji <b>"]),
        (5.0, 6.0, ["hello and bye"]),
    ]
    assert track.cues[0].rows[0].speaker == "Ada Lovelace"
    assert track.cues[2].rows[0].last_word == 5.4


def test_webvtt_agrees_with_webvtt_py() -> None:
    content = rolled_vtt(speak([(["one", "two"], False), (["three"], False), (["four", "five"], True)]), tags=False)
    theirs = webvtt.from_buffer(io.StringIO(content.decode()))
    expected = [(caption.start, caption.end, caption.text.split()) for caption in theirs]
    ours = [(webvtt_time(start), webvtt_time(end), " ".join(rows).split()) for start, end, rows in cues(content)]
    assert ours == expected


def webvtt_time(seconds: float) -> str:
    return f"{int(seconds) // 3600:02d}:{int(seconds) // 60 % 60:02d}:{seconds % 60:06.3f}"


SRT = """\
1
00:00:01,000 --> 00:00:02,000 X1:0 X2:9
<i>First</i> {\\an8}line
12

2

3
00:00:03,500 --> 00:00:04,000
<font color="#fff">Third</font>

00:00:05.5 --> 00:00:06,25
without a number

and an empty line inside
9
00:00:07,000 --> 00:00:08,000
last
"""


def test_subrip() -> None:
    assert cues(SRT) == [
        (1.0, 2.0, ["First line", "12", "", "2"]),
        (3.5, 4.0, ["Third"]),
        (5.5, 6.25, ["without a number", "", "and an empty line inside"]),
        (7.0, 8.0, ["last"]),
    ]


def test_sbv() -> None:
    content = "0:00:01.000,0:00:02.500\nHello[br]there\nyou\n\n1:00:03.000,1:00:04.000\nBye\n"
    assert cues(content) == [(1.0, 2.5, ["Hello", "there", "you"]), (3603.0, 3604.0, ["Bye"])]


def test_json3_with_hand_written_lines() -> None:
    content = {"events": [{"tStartMs": 1000, "dDurationMs": 500, "segs": [{"utf8": "two\nrows"}]}, {"id": 1}]}
    assert cues(json.dumps(content)) == [(1.0, 1.5, ["two", "rows"])]


def test_srv_1_2_3() -> None:
    one = '<?xml version="1.0"?><transcript><text start="1.5" dur="2">Tom &amp;amp; Ann</text></transcript>'
    two = '<timedtext><text t="1500" d="2000">Tom &amp; Ann</text></timedtext>'
    three = '<timedtext format="3"><body><p t="1500" d="2000">Tom<s ac="90"> &amp; Ann</s></p></body></timedtext>'
    for content in (one, two, three):
        assert cues(content) == [(1.5, 3.5, ["Tom & Ann"])]


TTML = """<?xml version="1.0" encoding="utf-8"?>
<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttp="http://www.w3.org/ns/ttml#parameter" ttp:frameRate="25"
    ttp:tickRate="10000000" xml:lang="fr">
<body><div>
<p begin="00:00:01.250" end="00:00:02:05">un <span>deux</span><br/>trois</p>
<p begin="5s" dur="500ms">quatre</p>
<p begin="70000000t" end="0.2m">cinq</p>
<p begin="50f" end="75f"><metadata>no</metadata>six</p>
</div></body></tt>"""


def test_ttml() -> None:
    assert parse_track(TTML.encode(), OPTIONS).language == "fr"
    assert cues(TTML) == [
        (1.25, 2.2, ["un deux", "trois"]),
        (5.0, 5.5, ["quatre"]),
        (7.0, 12.0, ["cinq"]),
        (2.0, 3.0, ["six"]),
    ]


def test_whisper_and_its_relatives() -> None:
    words = [{"word": " Hello", "start": 0.0, "end": 0.5, "probability": 0.9}]
    segment = {"start": 0.0, "end": 1.0, "text": " Hello", "words": words, "speaker": "SPEAKER_01"}
    doubtful = [{"compression_ratio": 2.5}, {"avg_logprob": -1.1}, {"no_speech_prob": 0.7}, {"avg_logprob": None}]
    content = {"segments": [segment, *({**segment, **extra} for extra in doubtful)], "language": "en"}
    track = parse_track(json.dumps(content).encode(), OPTIONS)
    assert [cue.bad for cue in track.cues] == [False, True, True, True, False]
    assert track.cues[0].confidence == (0.9,)
    assert (track.language, track.cues[0].rows[0].speaker) == ("en", "SPEAKER_01")
    cpp = {"transcription": [{"offsets": {"from": 500, "to": 1500}, "text": " Hi"}]}
    assert cues(json.dumps(cpp)) == [(0.5, 1.5, [" Hi"])]
    assert cues(json.dumps([{"start": 1, "end": 2, "text": "bare list"}])) == [(1.0, 2.0, ["bare list"])]


NO_CAPTIONS = {
    "empty": b"",
    "prose": b"Some prose without any time.",
    "header only": b"WEBVTT\n",
    "wrong JSON": b'{"a": 1}',
    "broken JSON": b'{"events": [',
    "deep JSON": b'{"events": ' + b"[" * 50_000,
    "empty events": b'{"events": []}',
    "wrong XML": b"<html><p>x</p></html>",
    "empty XML": b"<timedtext></timedtext>",
    "no XML": b"<<<",
    "latin-1": "WEBVTT\n\n00:01.000 --> 00:02.000\nKäse\n".encode("latin-1"),
    "entity bomb": b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><transcript></transcript>',
}


@pytest.mark.parametrize("name", NO_CAPTIONS)
def test_what_is_no_caption_file_is_said_to_be_none(name: str) -> None:
    with pytest.raises(BadCaptions):
        parse_track(NO_CAPTIONS[name], OPTIONS)


def test_entities_of_a_hostile_file_are_not_expanded() -> None:
    entities = "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 12))
    content = (
        f'<!DOCTYPE x [<!ENTITY x0 "lol">{entities}]><transcript><text start="0" dur="1">&x11;</text></transcript>'
    )
    try:
        found = parse_track(content.encode(), OPTIONS)
    except BadCaptions:
        return
    assert sum(len(row.text) for cue in found.cues for row in cue.rows) < 100


def test_utf_16_captions_are_read() -> None:
    assert cues("WEBVTT\n\n00:01.000 --> 00:02.000\nKäse".encode("utf-16")) == [(1.0, 2.0, ["Käse"])]


_SPOKEN = speak([(["one", "two"], False), (["three"], False)])
SEEDS = [
    VTT.encode(),
    SRT.encode(),
    TTML.encode(),
    json3(_SPOKEN),
    srv3(_SPOKEN),
    whisper(_SPOKEN),
    rolled_srt(_SPOKEN),
    b"0:00:01.000,0:00:02.500\nHello",
]


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    seed=st.sampled_from(SEEDS),
    cuts=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 40), st.binary(max_size=12)), max_size=4),
)
def test_no_change_of_a_file_makes_a_parser_crash(seed: bytes, cuts: list[tuple[int, int, bytes]]) -> None:
    content = seed
    for at, length, new in cuts:
        at %= len(content) + 1
        content = content[:at] + new + content[at + length :]
    with contextlib.suppress(BadCaptions):
        assert isinstance(parse_track(content, OPTIONS), Track)


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["events", "segs", "utf8", "segments", "text", "start", "words", "tStartMs", "offsets", "probability"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(value=_JSON)
def test_no_json_makes_a_parser_crash(value: object) -> None:
    with contextlib.suppress(BadCaptions):
        parse_track(json.dumps(value).encode(), OPTIONS)
