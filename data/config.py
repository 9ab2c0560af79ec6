"""What the data module is told: the sources, how they are mixed, how windows are cut, shuffled, read and checked."""

from dataclasses import dataclass
from enum import Enum

from isthmus.config import key


class DataKind(Enum):
    web = "web"
    transcripts = "transcripts"
    text = "text"
    synthetic = "synthetic"


class Mixing(Enum):
    weights = "weights"
    temperature = "temperature"
    unimax = "unimax"


class Packing(Enum):
    stream = "stream"
    best_fit = "best_fit"


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    """One named source of documents."""

    path: str | None = key(
        None,
        "folder that `isthmus data prepare` or `import` wrote (also an fsspec URL), prefix of a Megatron .bin and "
        ".idx, or file, folder or glob of .txt, .md, .jsonl, .vtt or .srt (null: embedded corpus)",
    )
    only: str | None = key(None, "one source of a prepared folder that holds several (null: all of them)")
    kind: DataKind = key(
        DataKind.text, "web, transcripts, text, synthetic: the last, as what `synthesize` wrote, is not real data"
    )
    weight: float = key(1.0, "share of the samples, relative to the other sources; 0: only in phases that name it")
    max_epochs: float | None = key(None, "never pass over the source more often: its share goes to the others")


@dataclass(kw_only=True, slots=True)
class PhaseConfig:
    """A stretch of the run with weights of its own."""

    name: str = key("", "what it is called in tables (its number)")
    tokens: int | None = key(None, "its length, all sites together (null, in the last phase: the rest of the run)")
    weights: dict[str, float] = key({}, "NAME: WEIGHT, for sources whose weight differs in this phase; 0: not in it")


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """A mixture of sources."""

    sources: dict[str, SourceConfig] = key({}, "NAME: {path, weight, max_epochs, ...}")
    phases: list[PhaseConfig] = key([], "in order: {tokens, weights} (none: one phase with the sources' weights)")
    mixing: Mixing = key(
        Mixing.weights, "weights, temperature (weight x tokens^(1/T)), unimax (equal tokens, at most unimax_epochs)"
    )
    temperature: float = key(1.0, "T of mixing=temperature: 1 mixes in proportion, a large one equally")
    unimax_epochs: float = key(4.0, "the most epochs of a source in mixing=unimax")
    real_floor: float = key(0.5, "refuse to train a phase with less than this fraction of real data (not synthetic)")
    benchmarks: list[str] = key([], "files that every source must have been decontaminated against; others are refused")
    benchmark_ngram: int = key(13, "words in a row that no source may share with them")
    vocab_size: int | None = key(None, "size of the byte-level BPE trained on the corpus (the model's, at most 8192)")
    tokenizer: str | None = key(None, "tokenizer file for text sources (null: that of the shards, or trained on them)")
    held_out: float = key(0.05, "fraction of every source kept for evaluation, whole documents")
    held_out_tokens: int = key(2_000_000, "the most tokens kept of a source of shards, from places all over it")
    packing: Packing = key(
        Packing.stream,
        "stream (samples are tokens in a row), best_fit (of whole documents, by the table of `isthmus data pack`)",
    )
    mask_documents: bool = key(False, "attention stays inside a document, and no loss on the first token of the next")
    reset_positions: bool = key(False, "positions begin at 0 in every document")
    skip: list[list[int]] = key([], "[[START, STOP], ...]: samples without a loss; nothing else moves")
    shuffle_chunk_bytes: int = key(16 * 2**20, "chunks of a source that are shuffled as a whole")
    shuffle_group_chunks: int = key(64, "chunks whose windows are shuffled together")
    workers: int = key(0, "processes that read ahead (0: the training process reads)")
    prefetch: int = key(4, "steps that each worker reads ahead")
    open_files: int = key(64, "files that a process keeps open at once")
    check_blocks: bool = key(False, "compare the hash of each block of local shards when it is first read")
    cache_bytes: int = key(8 * 2**30, "blocks of object stores kept in cache_dir, in bytes")
    max_bad_windows: int = key(16, "end the run when a rank has masked more windows that could not be read")
    log_samples: bool = key(False, "write each rank's sample numbers, for `isthmus data audit`")
    cache_dir: str = key("~/.cache/isthmus", "tokenizers, token arrays and blocks, named by content hash or address")
