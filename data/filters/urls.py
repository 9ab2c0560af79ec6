"""Pages to drop for their address: blocked domains, addresses and words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from isthmus.data.filters.config import UrlRules
from isthmus.errors import UserError

_SPLIT = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class UrlLists:
    domains: frozenset[str] = field(default_factory=frozenset)
    urls: frozenset[str] = field(default_factory=frozenset)
    words: frozenset[str] = field(default_factory=frozenset)


def load_lists(rules: UrlRules) -> UrlLists:
    """Read the lists that the rules name; lines that begin with `#` are comments.

    Raises:
        UserError: a list cannot be read.
    """
    return UrlLists(
        domains=frozenset(
            line.lower().removeprefix("www.") for line in _lines(rules.blocked_domains, "blocked_domains")
        ),
        urls=frozenset(_lines(rules.blocked_urls, "blocked_urls")),
        words=frozenset(word.lower() for word in rules.blocked_words),
    )


def url_rule(url: str, lists: UrlLists) -> str | None:
    """Return why a page with this address goes, or None. A page without an address stays."""
    if not url:
        return None
    if url in lists.urls:
        return "address"
    try:
        host = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return "malformed"
    parts = host.split(".")
    if any(".".join(parts[start:]) in lists.domains for start in range(len(parts) - 1)):
        return "domain"
    if lists.words and not lists.words.isdisjoint(_SPLIT.split(url.lower())):
        return "word"
    return None


def _lines(path: str | None, name: str) -> Iterable[str]:
    if path is None:
        return []
    try:
        content = Path(path).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=f"data.web.urls.{name}", fix="give a text file") from None
    return [line.strip() for line in content.splitlines() if line.strip() and not line.startswith("#")]
