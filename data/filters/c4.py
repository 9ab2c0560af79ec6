"""C4's rules of lines and documents (Raffel et al., JMLR 21 (140), section 2.2)."""

import re

from isthmus.data.filters.config import C4Rules
from isthmus.data.filters.text import TextView

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*(?=\s|$)")
_LINE_ENDS = (".", "?", "!", '"', "'")
_POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)


def c4(view: TextView, rules: C4Rules) -> tuple[str, str | None]:
    """Return the text of the lines that remain, and why the document goes (or None)."""
    sentences = 0
    kept = []
    for line in view.lines:
        line = line.strip()
        words = line.split()
        if len(line) > rules.max_word_length and any(len(word) > rules.max_word_length for word in words):
            continue
        if rules.citations and "[" in line:
            line = _CITATION.sub("", line)
        if rules.terminal_punctuation and (not line.endswith(_LINE_ENDS) or line.endswith("...")):
            continue
        if len(words) < rules.min_words_per_line:
            continue
        lower = line.lower()
        if rules.lorem_ipsum and "lorem ipsum" in lower:
            return "", "lorem_ipsum"
        if rules.javascript and "javascript" in lower:
            continue
        if rules.curly_bracket and "{" in line:
            return "", "curly_bracket"
        if rules.policy and any(phrase in lower for phrase in _POLICY):
            continue
        sentences += count_sentences(line)
        kept.append(line)
    if sentences < rules.min_sentences or not kept:
        return "", "too_few_sentences"
    return "\n".join(kept).strip(), None


def count_sentences(line: str) -> int:
    """Return the sentences of a line: its ends of sentences, and one more for words after the last."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    rest = line[ends[-1] :] if ends else line
    return len(ends) + bool(rest.strip())
