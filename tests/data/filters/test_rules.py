"""Each rule at its threshold, against a plain reading of its definition, and on hostile text."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.filters.c4 import c4, count_sentences
from isthmus.data.filters.config import (
    C4Rules,
    FineWebRules,
    GopherQuality,
    GopherRepetition,
    LanguageRules,
    PiiRules,
    TranscriptRules,
    UrlRules,
)
from isthmus.data.filters.fineweb import fineweb
from isthmus.data.filters.gopher import (
    duplicate_ngram_characters,
    gopher_quality,
    gopher_repetition,
    top_ngram_characters,
)
from isthmus.data.filters.language import identify, language_rule
from isthmus.data.filters.normalise import normalise
from isthmus.data.filters.pii import mask
from isthmus.data.filters.speech import transcript_rule
from isthmus.data.filters.text import TextView
from isthmus.data.filters.urls import UrlLists, load_lists, url_rule
from isthmus.errors import UserError

PROSE = (
    "The harbour of the old town lies to the north of the river, and the boats that come in with the tide wait. "
    "Most of them carry fish, salt and timber. In winter they stay at home! Who would sail in a storm? "
    "The masters meet in the tavern by the gate and tell each other what they have seen."
)


def distinct_prose(paragraphs: int) -> str:
    return "\n".join(PROSE.replace("town", f"town of {chr(97 + n)}{n}x") for n in range(paragraphs))


def test_prose_passes_every_rule() -> None:
    view = TextView(PROSE)
    assert gopher_repetition(view, GopherRepetition()) is None
    assert gopher_quality(view, GopherQuality()) is None
    assert fineweb(view, FineWebRules()) is None
    assert c4(view, C4Rules()) == (PROSE, None)
    assert transcript_rule(view, 30.0, TranscriptRules()) is None


@settings(deadline=None, max_examples=150)
@given(words=st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=60), n=st.integers(2, 6))
def test_ngram_sums_equal_a_plain_walk(words: list[str], n: int) -> None:
    view = TextView(" ".join(words))
    seen: set[tuple[str, ...]] = set()
    repeated = at = 0
    while at <= len(words) - n:
        ngram = tuple(words[at : at + n])
        if ngram in seen:
            repeated += sum(map(len, ngram))
            at += n
        else:
            seen.add(ngram)
            at += 1
    assert duplicate_ngram_characters(view, n) == repeated
    ngrams = Counter(" ".join(words[start : start + n]) for start in range(len(words) - n + 1))
    top = ngrams.most_common(1)
    assert top_ngram_characters(view, n) == (len(top[0][0]) * top[0][1] if top else 0)


def words(count: int, word: str = "ordinary") -> str:
    return " ".join(["the", "of", *(f"{word}" for _ in range(count - 2))])


AT_THE_THRESHOLD = {
    "too_few_words": (words(50), words(49)),
    "too_many_words": (words(100_000), words(100_001)),
    "short_words": (words(100, "abcd"), words(100, "ab")),
    "long_words": (words(100, "a" * 10), words(100, "a" * 11)),
    "hash_signs": (words(90) + " #" * 10, words(89) + " #" * 11),
    "ellipses": ("… " * 10 + words(90), "… " * 11 + words(89)),
    "bullet_lines": ("\n".join(["- " + words(9)] * 9 + [words(9)]), "\n".join(["- " + words(9)] * 10)),
    "ellipsis_lines": (
        "\n".join([words(20) + "..."] * 3 + [words(20)] * 7),
        "\n".join([words(20) + "..."] * 4 + [words(20)] * 6),
    ),
    "words_without_letters": (words(80) + " 1234" * 20, words(79) + " 1234" * 21),
    "stop_words": (words(60), words(60).replace("of", "off")),
}


@pytest.mark.parametrize("reason", AT_THE_THRESHOLD)
def test_gopher_quality_at_its_thresholds(reason: str) -> None:
    kept, dropped = AT_THE_THRESHOLD[reason]
    assert gopher_quality(TextView(kept), GopherQuality()) is None
    assert gopher_quality(TextView(dropped), GopherQuality()) == reason


def test_c4_drops_lines_and_documents() -> None:
    bad = [
        "Two words.",
        "Please enable JavaScript to go on.",
        "Read our privacy policy here.",
        "x" * 1001 + " is a word",
    ]
    lines = PROSE.split("\n")
    assert c4(TextView("\n".join([*bad, *lines])), C4Rules()) == (PROSE, None)
    assert c4(TextView(PROSE + "\nsome code { here"), C4Rules()) == ("", "curly_bracket")
    assert c4(TextView("One is here. Two is here. Three is here. Four is here."), C4Rules())[1] == "too_few_sentences"
    assert c4(TextView("A fact is known.[12] " + PROSE), C4Rules())[0].startswith("A fact is known. The")
    assert count_sentences("Hello there. What? Yes!! He said “no.” And so on") == 5


def test_fineweb_rules() -> None:
    rules = FineWebRules()
    assert (
        fineweb(TextView("\n".join(["a line that does not end at all, being long enough"] * 9)), rules)
        == "line_punctuation"
    )
    assert fineweb(TextView("\n".join(f"Short line {n}." for n in range(9))), rules) == "short_lines"
    assert fineweb(TextView(distinct_prose(3) + "\n" + PROSE + "\n" + PROSE), rules) == "duplicate_line_characters"
    short = "\n".join(f"This line number {n} has some words." for n in range(3))
    assert fineweb(TextView(short.replace("\n", "\n" * 6)), rules) == "newlines_per_word"
    assert (
        fineweb(
            TextView(
                "どこでも同じです。\n" * 1 + "ここでは長い行が続いています、そして三十文字を超えるまで書き続けます。"
            ),
            rules,
        )
        != "line_punctuation"
    )


def test_languages_are_told_apart() -> None:
    german = "Der alte Hafen liegt im Norden der Stadt, und die Boote warten auf die Flut."
    assert identify(PROSE)[0] == "en"
    assert identify(german)[0] == "de"
    assert identify(" \n ") == ("", 0.0)
    assert language_rule(*identify(PROSE), LanguageRules()) is None
    assert language_rule(*identify(german), LanguageRules()) == "other_language"
    assert language_rule("en", 0.65, LanguageRules()) == "uncertain_language"
    assert language_rule("de", 0.9, LanguageRules(keep=[])) is None


def test_addresses_are_blocked_by_domain_word_and_whole(tmp_path) -> None:
    (tmp_path / "domains").write_text("# bad\nwww.bad.example\nworse.example\n")
    (tmp_path / "urls").write_text("https://fine.example/page\n")
    rules = UrlRules(blocked_domains=str(tmp_path / "domains"), blocked_urls=str(tmp_path / "urls"))
    lists = load_lists(rules)
    assert url_rule("http://a.b.BAD.example:80/x", lists) == "domain"
    assert url_rule("https://fine.example/page", lists) == "address"
    assert url_rule("https://fine.example/xxx-videos", lists) == "word"
    assert url_rule("https://fine.example/Essex", lists) is None
    assert url_rule("https://notbad.example/", lists) is None
    assert url_rule("http://[::1", lists) == "malformed"
    assert url_rule("", lists) is None
    with pytest.raises(UserError, match="cannot be read"):
        load_lists(UrlRules(blocked_domains=str(tmp_path / "absent")))
    assert url_rule("https://porn.example", UrlLists()) is None


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("schÃ¶n", "schön"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\x00b\x07c\ufeff", "abc"),
        ("“curly” stays", "“curly” stays"),
        ("trailing  \nspace\t\n", "trailing\nspace"),
        ("bread &amp; butter", "bread & butter"),
        ("plain ascii", "plain ascii"),
    ],
)
def test_text_is_repaired(damaged: str, repaired: str) -> None:
    assert normalise(damaged) == repaired


_PIECES = ["schÃ¶n", "â€œ", "&amp;", "&eacute;", "<b>", "cafe\u0301", "\n", " ", "\t", "plain", "ﬁ", "“", "\x1b[31m"]


@settings(deadline=None, max_examples=150)
@given(pieces=st.lists(st.sampled_from(_PIECES), max_size=12))
def test_repair_line_by_line_equals_ftfy_on_the_whole(pieces: list[str]) -> None:
    import ftfy

    text = "".join(pieces)
    whole = ftfy.fix_text(text, uncurl_quotes=False, fix_latin_ligatures=False, normalization="NFC")
    assert normalise(text) == normalise(whole.replace("&", "\ue000")).replace("\ue000", "&")


@settings(deadline=None, max_examples=80)
@given(text=st.text(max_size=80))
def test_normal_text_stays_normal_and_encodable(text: str) -> None:
    once = normalise(text)
    once.encode("utf-8", "surrogatepass")
    assert "\r" not in once
    assert "\x00" not in once


def test_personal_addresses_are_masked_by_document() -> None:
    text = (
        "Write to Jane.Doe@firm.co.uk or jane.doe@firm.co.uk; ping 8.8.8.8 but not 192.168.1.1, 1.2.3.4.5 or 999.1.1.1"
    )
    masked, count = mask(text, b"document one 123", PiiRules())
    assert count == 3
    assert "firm" not in masked
    assert "8.8.8.8" not in masked
    assert "192.168.1.1" in masked
    assert "1.2.3.4.5" in masked
    assert "999.1.1.1" in masked
    first, second = (word.strip(";") for word in masked.split() if "@" in word)
    assert first == second
    assert mask(text, b"document one 123", PiiRules()) == (masked, count)
    assert mask(text, b"document two 123", PiiRules())[0] != masked
    assert mask(text, b"x", PiiRules(emails=False, addresses=False)) == (text, 0)
    hostile = "a." * 50_000 + "@" * 1000
    assert mask(hostile, b"x", PiiRules())[1] == 0


def test_transcripts_have_rules_of_their_own() -> None:
    rules = TranscriptRules()
    other = "My grandmother baked bread on every Saturday until her oven broke and nobody in our village could mend it"
    speech = f"{PROSE} {other}".replace(".", "").replace("!", "").replace("?", "").lower()
    assert fineweb(TextView(speech), FineWebRules()) == "line_punctuation"
    assert transcript_rule(TextView(speech), 90.0, rules) is None
    assert transcript_rule(TextView(speech), None, rules) is None
    assert transcript_rule(TextView("thank you"), 10.0, rules) == "too_few_words"
    assert transcript_rule(TextView(speech), 3600.0, rules) == "slow_speech"
    assert transcript_rule(TextView(speech), 5.0, rules) == "fast_speech"
    assert transcript_rule(TextView("la " * 500), 200.0, rules) == "few_different_words"
    assert transcript_rule(TextView(f"{PROSE} " * 3), 100.0, rules) == "duplicate_10_gram"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(text=st.text(max_size=300))
def test_no_text_makes_a_rule_crash(text: str) -> None:
    view = TextView(text)
    gopher_repetition(view, GopherRepetition())
    gopher_quality(view, GopherQuality())
    gopher_quality(view, GopherQuality(min_words=0, min_mean_word_length=0))
    fineweb(view, FineWebRules())
    c4(view, C4Rules(min_sentences=0))
    transcript_rule(view, 1.0, TranscriptRules(min_words=0)) if view.words else None
    identify(text)
    mask(text, b"x", PiiRules())
