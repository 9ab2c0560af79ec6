"""Extraction: main text, encodings, and limits that depend on the page alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import as_page, sample_pages

from isthmus.data.web.extract import Extracted, decode_page, extract, page_hash

LIMITS = {"max_bytes": 1_000_000, "max_nodes": 20_000}


def test_the_main_text_is_found_and_the_menu_is_not() -> None:
    name, text = sorted(sample_pages().items())[0]
    found = extract(as_page(name, text), "", **LIMITS)
    assert isinstance(found, Extracted)
    assert found.title == name
    assert text.split("\n\n")[2][:80].replace("\n", " ") in found.text.replace("\n", " ")
    assert "home" not in found.text.split("\n")[0]


def test_a_page_comes_out_the_same_whatever_came_before() -> None:
    name, text = sorted(sample_pages().items())[1]
    page = as_page(name, text)
    first = extract(page, "", **LIMITS)
    for _ in range(4):  # trafilatura's own memory would drop segments that it saw three times
        assert extract(page, "", **LIMITS) == first


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (b"x" * 1_000_001, "too_large"),
        (b"<p>" * 20_001, "too_many_nodes"),
        (b"<br>text" * 15_000, "too_many_nodes"),
        (b"", "no_html"),
        (b"<html><body></body></html>", "no_text"),
    ],
)
def test_pages_beyond_the_limits_are_dropped_by_size(page: bytes, reason: str) -> None:
    assert extract(page, "", **LIMITS) == reason


@pytest.mark.parametrize(
    ("content", "charset", "expected"),
    [
        ("Käse".encode(), "", "Käse"),
        ("Käse".encode(), "iso-8859-1", "Käse"),
        ("Käse".encode("utf-8-sig"), "", "Käse"),
        ("Käse “x”".encode("windows-1252"), "", "Käse “x”"),
        ("Käse “x”".encode("windows-1252"), "iso-8859-1", "Käse “x”"),
        ("сыр".encode("koi8-r"), "koi8-r", "сыр"),
        ('<meta charset="koi8-r">сыр'.encode("koi8-r"), "", '<meta charset="koi8-r">сыр'),
        ("チーズ".encode("shift_jis"), "Shift_JIS", "チーズ"),
        ("Käse".encode("utf-16"), "", "Käse"),
        (b"\xff\x81", "no-such-charset", "ÿ\ufffd"),
        (b"\xff\x81", "hex", "ÿ\ufffd"),
    ],
)
def test_characters_are_decoded_as_browsers_do(content: bytes, charset: str, expected: str) -> None:
    assert decode_page(content, charset).removeprefix("\ufeff") == expected


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "<p>",
                "</p>",
                "<div>",
                "<table>",
                "<tr>",
                "<!--",
                "-->",
                "<![CDATA[",
                "<script>",
                "</html>",
                "<a href=",
                "&#0;",
                "&#xd800;",
                "<svg>",
                "<title>",
                "text and more text. ",
                "\x00",
                "<body>",
                "<head>",
                "é",
                "<li>",
                "<br/>",
            ]
        ),
        max_size=40,
    ),
    junk=st.binary(max_size=40),
)
def test_no_page_makes_extraction_crash(parts: list[str], junk: bytes) -> None:
    content = "".join(parts).encode() + junk
    assert isinstance(extract(content, "utf-8", **LIMITS), Extracted | str)
    assert len(page_hash(content)) == 16
