"""What the data module is told: the sources, their weights, the tokenizer and the held-out split."""

from dataclasses import dataclass

from isthmus.config import key


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One named source of documents."""

    path: str | None = key(None, "file, folder or glob of .txt, .md, .jsonl, .vtt or .srt (null: embedded corpus)")
    weight: float = key(1.0, "share of the samples, relative to the other sources")
    max_epochs: float | None = key(None, "refuse a run that would pass over the source more often (null: no limit)")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """A mixture of sources."""

    sources: dict[str, SourceConfig] = key({}, "NAME: {path, weight, max_epochs}")
    vocab_size: int | None = key(None, "size of the byte-level BPE trained on the corpus (the model's, at most 8192)")
    held_out: float = key(0.05, "fraction of every source's bytes kept for evaluation, whole documents")
    cache_dir: str = key("~/.cache/isthmus", "tokenizers and token arrays, named by content hash")
