"""What `isthmus data prepare` can be told."""

from dataclasses import dataclass, field
from enum import Enum

from isthmus.config import key
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


class SourceKind(Enum):
    web = "web"
    transcripts = "transcripts"
    text = "text"


@dataclass(kw_only=True, slots=True)
class PrepareSource:
    """One named source of raw files."""

    kind: SourceKind = key(SourceKind.text, "web, transcripts, text (already clean: only normalised)")
    path: str | None = key(None, "file, folder, glob or fsspec URL")
    paths: list[str] = key([], "several of them")
    metadata: str | None = key(None, "transcripts: JSONL of videos with id, title, channel, language, licence")
    text_field: str = key("text", "field or column of the text in JSONL and parquet")
    about_fields: list[str] = key(
        ["id", "title", "date", "author", "channel", "language", "licence", "license"], "fields kept in the lineage"
    )
    licence: str | None = key(None, "licence of every document that does not bring one")
    languages: list[str] | None = key(None, "languages to keep in this source (null: those of its kind)")


@dataclass(kw_only=True, slots=True)
class TokenizerFile:
    path: str | None = key(None, "tokenizers .json, sentencepiece .model, .tiktoken, or tiktoken:NAME")
    end_of_document: str | None = key(
        None, "the token between documents (null: the one that the tokenizer is known by)"
    )


@dataclass(kw_only=True, slots=True)
class WebConfig:
    """Web sources: rules in FineWeb's order."""

    max_page_bytes: int = key(4_000_000, "larger pages are dropped")
    max_page_nodes: int = key(100_000, "pages with more elements, texts and comments are dropped")
    cpu_seconds: float = key(60.0, "backstop: a page that takes longer is journaled, and dropped in every later run")
    normalise: bool = key(True, "repair mojibake, compose Unicode, remove control characters")
    mask_pii: bool = key(True, "replace e-mail and public IP addresses")
    urls: UrlRules = key(UrlRules, "")
    language: LanguageRules = key(LanguageRules, "")
    gopher_repetition: GopherRepetition = key(GopherRepetition, "")
    gopher_quality: GopherQuality = key(GopherQuality, "")
    c4: C4Rules = key(C4Rules, "")
    fineweb: FineWebRules = key(FineWebRules, "")
    pii: PiiRules = key(PiiRules, "")


@dataclass(kw_only=True, slots=True)
class TranscriptsConfig:
    """Transcript sources."""

    keep_translations: bool = key(False, "keep tracks in other languages than the video's")
    stage_directions: bool = key(True, "remove [applause], (laughs) and the like")
    music: bool = key(True, "remove note signs, and cues that are music")
    speakers: bool = key(True, "keep speakers' names at the beginning of their turns")
    pause_seconds: float = key(2.0, "a longer pause begins a new paragraph")
    paragraph_words: int = key(120, "a sentence's end after so many words begins a new paragraph")
    time_marks: bool = key(False, "begin each paragraph with its time, [hh:mm:ss]")
    heading: bool = key(False, "begin the text with title and channel")
    punctuate: str | None = key(None, "MODULE:FUNCTION that restores the punctuation of unpunctuated speech")
    max_compression_ratio: float = key(2.4, "Whisper segments above are dropped")
    min_log_probability: float = key(-1.0, "Whisper segments with a lower mean log probability are dropped")
    max_no_speech: float = key(0.6, "Whisper segments that are more probably no speech are dropped")
    max_bad_segments: float = key(0.3, "drop transcripts with a larger fraction of such segments")
    min_word_confidence: float = key(0.0, "drop json3 transcripts with a lower mean confidence of words (0 to 1)")
    mask_pii: bool = key(False, "replace e-mail and public IP addresses")
    language: LanguageRules = field(default_factory=lambda: LanguageRules(keep=[]))
    rules: TranscriptRules = key(TranscriptRules, "")
    pii: PiiRules = key(PiiRules, "")


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Sources that are clean already."""

    normalise: bool = key(True, "repair mojibake, compose Unicode, remove control characters")
    mask_pii: bool = key(False, "replace e-mail and public IP addresses")
    pii: PiiRules = key(PiiRules, "")


@dataclass(kw_only=True, slots=True)
class LimitsConfig:
    record_bytes: int = key(16_000_000, "largest record, file or archive member; larger ones are rejected")
    line_bytes: int = key(16_000_000, "longest line of JSONL")
    expansion: int = key(300, "a stream that grows more when unpacked (beyond 64 MB) is taken for a zip bomb")


@dataclass(kw_only=True, slots=True)
class DedupConfig:
    exact: bool = key(True, "remove equal texts, within and across sources")
    minhash: bool = key(True, "remove near-duplicates")
    threshold: float = key(0.7, "smallest estimated Jaccard similarity of near-duplicates")
    bands: int = key(14, "bands of the signature: a candidate pair agrees in one")
    rows: int = key(8, "numbers in a band")
    ngram: int = key(5, "words of a shingle")


@dataclass(kw_only=True, slots=True)
class DecontaminateConfig:
    files: list[str] = key([], "benchmarks: .txt (a text a line) or .jsonl (every string of an object)")
    ngram: int = key(13, "words in a row that a document must not share with them")


@dataclass(kw_only=True, slots=True)
class ShardsConfig:
    tokens: int = key(500_000_000, "a shard is closed before the document that would make it larger")
    pack: list[int] = key([], "sequence lengths to pack whole documents for, for training with data.packing=best_fit")


@dataclass(kw_only=True, slots=True)
class PrepareData:
    """The file given as `data=`."""

    sources: dict[str, PrepareSource] = key({}, "NAME: {kind, path, ...}")
    tokenizer: TokenizerFile = key(TokenizerFile, "")
    web: WebConfig = key(WebConfig, "")
    transcripts: TranscriptsConfig = key(TranscriptsConfig, "")
    text: TextConfig = key(TextConfig, "")
    dedup: DedupConfig = key(DedupConfig, "")
    decontaminate: DecontaminateConfig = key(DecontaminateConfig, "")
    shards: ShardsConfig = key(ShardsConfig, "")
    limits: LimitsConfig = key(LimitsConfig, "")
    max_reject_fraction: float = key(0.01, "fail at the end if more of the records could not be read")
    unit_bytes: int = key(64_000_000, "input that is worked on at once; part of what the result depends on")
    samples: int = key(3, "documents shown for each rule in the report")
    seed: int = key(0, "which documents are shown")


@dataclass(kw_only=True, slots=True)
class PrepareConfig:
    """Everything that `isthmus data prepare` can be told."""

    data: PrepareData = key(PrepareData, "")
    out: str | None = key(None, "folder of the dataset")
    workers: int | None = key(None, "processes (null: one per core); changes nothing in the result")
