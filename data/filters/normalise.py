"""One spelling for every text: mojibake repaired, Unicode composed, control characters and odd line breaks gone."""

import re
from functools import cache
from typing import Any

from isthmus.data.extras import need

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_SPACE_BEFORE_BREAK = re.compile(r"[ \t]+\n")
_ENTITY = re.compile(r"&(?:[A-Za-z][A-Za-z0-9]{1,30}|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});")


def normalise(text: str) -> str:
    """Return the text repaired (ftfy), in Unicode's form NFC, with `\\n` as the only line break.

    Quotation marks keep their shape: curly ones are not damage.
    """
    if not text.isascii():
        text = need("ftfy").fix_text(text, _settings())
    elif _ENTITY.search(text) and "<" not in text:
        # ASCII holds no mojibake; what ftfy could still do to it is to resolve entities.
        text = need("ftfy").fix_text(text, _settings())
    if "\r" in text or "\u2028" in text or "\u2029" in text or "\x85" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    if not text.isprintable():
        text = _CONTROL.sub("", text)
    return _SPACE_BEFORE_BREAK.sub("\n", text).strip()


@cache
def _settings() -> Any:
    return need("ftfy").TextFixerConfig(
        uncurl_quotes=False, fix_latin_ligatures=False, normalization="NFC", explain=False
    )
