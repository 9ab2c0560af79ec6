"""E-mail and public IP addresses are replaced by ones that belong to nobody, chosen by the document's hash.

A replacement that cycles through a list depends on what its process saw before, so the same document would come out
differently in another run.
"""

import hashlib
import ipaddress
import re

from isthmus.data.filters.config import PiiRules

# The length limits are those of RFC 5321; they also keep the search linear on hostile text.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b"
)
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.]*\d)")
_NETWORKS = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737: for documentation
_DOMAINS = ("example.com", "example.org", "example.net")  # RFC 2606


def mask(text: str, document: bytes, rules: PiiRules) -> tuple[str, int]:
    """Return the text with addresses replaced, and how many; equal addresses of a document stay equal."""
    count = 0

    def email(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        number = _number(document, match[0].lower())
        return f"user{number % 100_000:05d}@{_DOMAINS[number % len(_DOMAINS)]}"

    def address(match: re.Match[str]) -> str:
        nonlocal count
        try:
            if not ipaddress.ip_address(match[0]).is_global:
                return match[0]
        except ValueError:  # 999.1.1.1, or a version number with leading zeros
            return match[0]
        count += 1
        number = _number(document, match[0])
        return f"{_NETWORKS[number % len(_NETWORKS)]}.{number % 254 + 1}"

    if rules.emails and "@" in text:
        text = _EMAIL.sub(email, text)
    if rules.addresses:
        text = _IP.sub(address, text)
    return text, count


def _number(document: bytes, value: str) -> int:
    return int.from_bytes(hashlib.blake2b(value.encode(), key=document, digest_size=8).digest(), "little")
