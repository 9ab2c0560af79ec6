"""Thresholds of the rules; the defaults are the published ones."""

from dataclasses import dataclass

from isthmus.config import key


@dataclass(kw_only=True, slots=True)
class UrlRules:
    enabled: bool = key(True, "drop pages by their address")
    blocked_domains: str | None = key(None, "file of domains, one a line; subdomains are blocked with them")
    blocked_urls: str | None = key(None, "file of whole addresses, one a line")
    blocked_words: list[str] = key(["porn", "hentai", "xxx", "camgirls"], "words that an address must not hold")


@dataclass(kw_only=True, slots=True)
class LanguageRules:
    """FineWeb (arXiv 2406.17557, section 3): English with a fastText score above 0.65."""

    enabled: bool = key(True, "identify languages and drop documents of others")
    keep: list[str] = key(["en"], "codes of the languages to keep (empty: every one)")
    min_score: float = key(0.65, "score that the language must exceed")


@dataclass(kw_only=True, slots=True)
class GopherRepetition:
    """Rae et al., arXiv 2112.11446, table A1."""

    enabled: bool = key(True, "drop documents that repeat themselves")
    duplicate_lines: float = key(0.30, "largest fraction of lines that were there before")
    duplicate_paragraphs: float = key(0.30, "the same of paragraphs")
    duplicate_line_characters: float = key(0.20, "largest fraction of characters in such lines")
    duplicate_paragraph_characters: float = key(0.20, "the same in such paragraphs")
    top_ngrams: dict[int, float] = key(
        {2: 0.20, 3: 0.18, 4: 0.16}, "n: largest fraction of characters in the most frequent n-gram"
    )
    duplicate_ngrams: dict[int, float] = key(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        "n: largest fraction of characters in n-grams that were there before",
    )


@dataclass(kw_only=True, slots=True)
class GopherQuality:
    """Rae et al., arXiv 2112.11446, appendix A.1.1."""

    enabled: bool = key(True, "drop documents that do not read like prose")
    min_words: int = key(50, "fewest words")
    max_words: int = key(100_000, "most words")
    min_mean_word_length: float = key(3.0, "shortest mean length of words")
    max_mean_word_length: float = key(10.0, "longest mean length of words")
    max_symbols_per_word: float = key(0.1, "most hash signs, and most ellipses, per word")
    max_bullet_lines: float = key(0.9, "largest fraction of lines that begin with a bullet")
    max_ellipsis_lines: float = key(0.3, "largest fraction of lines that end with an ellipsis")
    min_alphabetic_words: float = key(0.8, "smallest fraction of words with a letter")
    min_stop_words: int = key(2, "fewest different stop words (0 for languages other than English)")
    stop_words: list[str] = key(["the", "be", "to", "of", "and", "that", "have", "with"], "the stop words")


@dataclass(kw_only=True, slots=True)
class C4Rules:
    """Raffel et al., JMLR 21 (140), section 2.2; FineWeb leaves the rule of terminal punctuation out."""

    enabled: bool = key(True, "drop lines and documents by C4's rules")
    min_sentences: int = key(5, "fewest sentences in the lines that remain (0: no such rule)")
    min_words_per_line: int = key(3, "drop lines with fewer words")
    max_word_length: int = key(1000, "drop lines with a longer word")
    terminal_punctuation: bool = key(False, "drop lines that do not end a sentence")
    citations: bool = key(True, "remove marks such as [3] and [edit]")
    javascript: bool = key(True, "drop lines that mention javascript")
    policy: bool = key(True, "drop lines about cookies and terms of use")
    curly_bracket: bool = key(True, "drop documents with a curly bracket")
    lorem_ipsum: bool = key(True, "drop documents with this filler")


@dataclass(kw_only=True, slots=True)
class FineWebRules:
    """Penedo et al., arXiv 2406.17557, section 3.6, and the lists rule of their published pipeline."""

    enabled: bool = key(True, "drop documents by FineWeb's rules")
    min_line_punctuation: float = key(0.12, "smallest fraction of lines that end a sentence")
    max_short_lines: float = key(0.67, "largest fraction of lines of at most short_line characters")
    short_line: int = key(30, "characters of a short line")
    max_duplicate_line_characters: float = key(0.01, "largest fraction of characters in repeated lines")
    max_newlines_per_word: float = key(0.3, "most line breaks per word")


@dataclass(kw_only=True, slots=True)
class PiiRules:
    emails: bool = key(True, "replace e-mail addresses")
    addresses: bool = key(True, "replace public IP addresses")


@dataclass(kw_only=True, slots=True)
class TranscriptRules:
    """Our own: Gopher's and FineWeb's line rules would drop speech for having no punctuation."""

    enabled: bool = key(True, "drop transcripts that are too short, repeat themselves or are no speech")
    min_words: int = key(50, "fewest words")
    min_words_per_minute: float = key(20.0, "slowest speech: below, most of the video is silence or music")
    max_words_per_minute: float = key(400.0, "fastest speech: above, the timings or the words are broken")
    max_top_ngram: float = key(0.20, "largest fraction of characters in the most frequent 4-gram")
    max_duplicate_ngram: float = key(0.30, "largest fraction of characters in 10-grams that were there before")
    min_alphabetic_words: float = key(0.7, "smallest fraction of words with a letter")
    min_distinct_words: float = key(0.05, "smallest fraction of different words among the first 1000")
