"""One spelling for every text: mojibake repaired, Unicode composed, control characters and odd line breaks gone."""

import re
from functools import cache
from typing import Any

from isthmus.data.extras import need

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_SPACE_BEFORE_BREAK = re.compile(r"[ \t]+\n")
_ESCAPE = "\x1b"
_OTHER_BREAKS = re.compile(r"\r\n?|[\u2028\u2029\x85]")


def normalise(text: str) -> str:
    """Return the text repaired (ftfy), in Unicode's form NFC, with `\\n` as the only line break.

    Quotation marks keep their shape: curly ones are not damage.
    """
    if "\r" in text or not text.isascii():
        text = _OTHER_BREAKS.sub("\n", text)
    if not text.isascii() or "&" in text or _ESCAPE in text:
        text = _repair(text)
    if not text.isprintable():
        text = _CONTROL.sub("", text)
        text = _SPACE_BEFORE_BREAK.sub("\n", text)
    return text.strip()


def whole(text: str) -> str:
    """Return the text with halves of surrogate pairs joined or replaced: JSON may hold them, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _repair(text: str) -> str:
    """Apply ftfy line by line, as it does itself, but only to the lines that it could change.

    ASCII holds no mojibake and is NFC; what remains there are colours of terminals, and entities, which ftfy
    resolves until a line holds a `<`.
    """
    fix = need("ftfy").fix_text_segment
    lines = text.split("\n")
    entities = True
    for number, line in enumerate(lines):
        entities = entities and "<" not in line
        if not line.isascii() or (entities and "&" in line) or _ESCAPE in line:
            lines[number] = fix(line, _settings(entities))
    return "\n".join(lines)


@cache
def _settings(entities: bool) -> Any:
    return need("ftfy").TextFixerConfig(
        unescape_html=entities, uncurl_quotes=False, fix_latin_ligatures=False, normalization="NFC", explain=False
    )
