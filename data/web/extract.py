"""The main text of a page (trafilatura), within limits that are the same on every machine."""

import codecs
import hashlib
import re
from dataclasses import dataclass

from isthmus.data.extras import need

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{2,40})", re.IGNORECASE)
_META_WITHIN = 4096  # bytes; the HTML standard says 1024, real pages are later
_LONGEST_TITLE = 300


@dataclass(frozen=True, slots=True)
class Extracted:
    text: str
    title: str


def extract(content: bytes, charset: str, *, max_bytes: int, max_nodes: int) -> Extracted | str:
    """Return a page's text, or the name of the rule that drops it.

    Every limit is a size: a limit in seconds would make the result depend on the machine and its load.
    """
    if len(content) > max_bytes:
        return "too_large"
    if content.count(b"<") > max_nodes:  # before the parser spends time on it
        return "too_many_nodes"
    text = decode_page(content, charset)
    trafilatura = need("trafilatura")
    try:
        tree = trafilatura.load_html(text)
        if tree is None:
            return "no_html"
        if tree.xpath("count(//node())") > max_nodes:
            return "too_many_nodes"
        title = " ".join((tree.findtext(".//title") or "").split())[:_LONGEST_TITLE]
        # Repeated segments are dropped within a page. With `deduplicate=True` trafilatura remembers those of earlier
        # pages too, so that a page's text would depend on what its process saw before.
        seen = trafilatura.deduplication.LRUCache(maxsize=4096)
        found = trafilatura.extract(
            tree, favor_precision=True, include_comments=False, deduplicate=seen, with_metadata=False
        )
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError, RecursionError):
        return "extraction_error"
    return Extracted(found, title) if found else "no_text"


def decode_page(content: bytes, charset: str = "") -> str:
    """Return a page's characters: UTF-8 if it is that, else as declared, else Windows-1252 as browsers read it."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    declared = _META_CHARSET.search(content[:_META_WITHIN])
    for name in (charset, declared[1].decode("ascii") if declared else ""):
        try:
            if name and codecs.lookup(name).name not in ("utf-8", "iso8859-1", "ascii") and _is_text_codec(name):
                return content.decode(name)
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return content.decode("windows-1252", "replace")


def page_hash(content: bytes) -> bytes:
    """Return the 16 bytes under which a page is remembered."""
    return hashlib.blake2b(content, digest_size=16).digest()


def _is_text_codec(name: str) -> bool:
    return bool(getattr(codecs.lookup(name), "_is_text_encoding", False))
