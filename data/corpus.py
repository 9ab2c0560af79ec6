"""Opened sources: a training and a held-out stream of tokens each, the same on every rank of every site."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.data.admission import Benchmarks
from isthmus.data.config import DataConfig, DataKind, Mixing, Packing, SourceConfig
from isthmus.data.documents import Document, is_synthetic, read_source, split_held_out
from isthmus.data.mixture import MixSource, Mixture, phases_of
from isthmus.data.order import Shape
from isthmus.data.packed import PackedStream
from isthmus.data.reading import Reader
from isthmus.data.shard_source import ShardSource, is_shard_path, open_shards
from isthmus.data.streams import ArrayStream, Stream
from isthmus.data.tokenizer import END_ID, load_or_train
from isthmus.data.tokenizers import TextTokenizer, load_text_tokenizer
from isthmus.errors import UserError
from isthmus.files import write_atomically

LARGEST_TRAINED_VOCABULARY = 8_192


@dataclass(frozen=True)
class Source:
    """One source's token streams, documents ended by the end-of-document token."""

    name: str
    config: SourceConfig
    train: Stream
    held_out: Stream
    fingerprint: str
    made: bool = False  # by `isthmus data synthesize`, whatever the configuration calls it

    @property
    def fill(self) -> float:
        """Return which part of its samples is tokens and not padding."""
        return self.train.fill if isinstance(self.train, PackedStream) else 1.0

    @property
    def synthetic(self) -> bool:
        return self.made or self.config.kind is DataKind.synthetic


@dataclass(frozen=True)
class Corpus:
    """All sources; `tokenizer` is None where they are all shards, whose own tokenizer is described by `made_by`."""

    sources: dict[str, Source]
    vocab_size: int
    end: int | None
    tokenizer: Any = None


def build_corpus(config: DataConfig, vocab_size: int, sequence_length: int | None = None) -> Corpus:
    """Open every source; text is split and tokenised, with what the cache knows by its hash taken from there.

    Args:
        sequence_length: of the samples, needed where windows are packed.

    Raises:
        UserError: no sources, an unreadable or empty one, a weight that is negative, sources of different tokenizers,
            an unwritable cache, no table of packed windows, or a source that may hold a benchmark's words.
    """
    _validate(config)
    packed_for = sequence_length if config.packing is Packing.best_fit else None
    cache = Path(config.cache_dir).expanduser()
    reader = Reader(config.open_files, cache, config.cache_bytes, check_blocks=config.check_blocks)
    shards = {
        name: open_shards(source.path, source.only, reader, f"data.sources.{name}", packed_for=packed_for)
        for name, source in sorted(config.sources.items())
        if source.path is not None and is_shard_path(source.path)
    }
    if packed_for and (text_sources := sorted(set(config.sources) - set(shards))):
        raise UserError(
            "is text, and windows are packed when data is prepared",
            where=f"data.sources.{text_sources[0]}",
            fix="give what `isthmus data prepare` makes of it, or set data.packing=stream",
        )
    benchmarks = Benchmarks(config.benchmarks, config.benchmark_ngram)
    if benchmarks:
        for name, opened in shards.items():
            benchmarks.check_shards(name, opened.decontaminated)
    made_by = _tokenizer_of(shards)
    if shards and len(shards) == len(config.sources):
        text = load_text_tokenizer(config.tokenizer) if config.tokenizer else None
        corpus = _of_text(config, {}, made_by.get("size") or (text.size if text else vocab_size), None, cache)
        corpus = Corpus({}, corpus.vocab_size, made_by.get("end", text.end if text else None))
    else:
        corpus = _text_corpus(config, shards, made_by, vocab_size, cache, benchmarks)
    if corpus.vocab_size > vocab_size:
        raise UserError(
            f"the tokens are of a vocabulary of {corpus.vocab_size}, and the model's embedding has {vocab_size} rows",
            where="data.sources",
            fix=f"set model.vocab_size={corpus.vocab_size} or more",
        )
    sources = dict(corpus.sources)
    for name, opened in shards.items():
        wanted = min(int(config.held_out * opened.tokens), config.held_out_tokens)
        train, held_out = opened.split(wanted, sequence_length)
        sources[name] = Source(name, config.sources[name], train, held_out, opened.fingerprint, opened.synthetic)
    return Corpus(dict(sorted(sources.items())), corpus.vocab_size, corpus.end, corpus.tokenizer)


def mixture_of(corpus: Corpus, config: DataConfig, *, sequence_length: int, samples: int, seed: int) -> Mixture:
    """Return the plan's input: the shape of every source, cut into windows of `sequence_length` tokens."""
    sources = {}
    for name, source in corpus.sources.items():
        wish = config.sources[name]
        packed = isinstance(source.train, PackedStream)
        window_bytes = sequence_length * source.train.dtype.itemsize
        shape = Shape(
            windows=source.train.windows(sequence_length),
            tokens=0 if packed else len(source.train),
            stride=sequence_length,
            chunk_windows=max(1, config.shuffle_chunk_bytes // window_bytes),
            group_chunks=config.shuffle_group_chunks,
        )
        sources[name] = MixSource(shape, source.fingerprint, wish.weight, wish.max_epochs, source.fill)
    return Mixture(
        sources=sources,
        phases=phases_of(config, sequence_length),
        seed=seed,
        samples=samples,
        window_tokens=sequence_length,
        mixing=config.mixing,
        temperature=config.temperature,
        unimax_epochs=config.unimax_epochs,
    )


def _validate(config: DataConfig) -> None:
    if not config.sources:
        raise UserError("there are none", where="data.sources", fix="use data=embedded or name some in a file")
    for name, source in config.sources.items():
        where = f"data.sources.{name}"
        named = any(phase.weights.get(name, 0) > 0 for phase in config.phases)
        if source.weight < 0 or (source.weight == 0 and not named):
            raise UserError(f"is {source.weight}", where=f"{where}.weight", fix="it must be positive")
        if source.max_epochs is not None and source.max_epochs <= 0:
            raise UserError(f"is {source.max_epochs}", where=f"{where}.max_epochs", fix="it must be positive")
        if config.mixing is Mixing.unimax and source.weight not in (0, 1):
            raise UserError(f"is {source.weight}", where=f"{where}.weight", fix="data.mixing=unimax takes no weights")
    for where, value, least in (
        ("temperature", config.temperature, 0.01),
        ("unimax_epochs", config.unimax_epochs, 0.01),
        ("shuffle_chunk_bytes", config.shuffle_chunk_bytes, 1),
        ("shuffle_group_chunks", config.shuffle_group_chunks, 1),
        ("open_files", config.open_files, 1),
        ("workers", config.workers, 0),
        ("prefetch", config.prefetch, 1),
        ("held_out_tokens", config.held_out_tokens, 0),
        ("max_bad_windows", config.max_bad_windows, 0),
    ):
        if value < least:
            raise UserError(f"is {value}", where=f"data.{where}", fix=f"it starts at {least}")
    if not 0 <= config.held_out < 0.5:
        raise UserError(f"is {config.held_out}", where="data.held_out", fix="choose a fraction from 0 to below 0.5")
    if not 0 <= config.real_floor <= 1:
        raise UserError(f"is {config.real_floor}", where="data.real_floor", fix="choose a fraction from 0 to 1")
    for entry in config.skip:
        if len(entry) != 2 or not 0 <= entry[0] < entry[1]:
            raise UserError(
                f"{entry} is no range", where="data.skip", fix="write [[START, STOP], ...] with START < STOP"
            )


def _tokenizer_of(shards: dict[str, ShardSource]) -> dict[str, Any]:
    """Return what the manifests say of their tokenizer, which must be one."""
    known = {name: source.tokenizer for name, source in shards.items() if source.tokenizer}
    hashes = {name: tokenizer.get("sha256") for name, tokenizer in known.items()}
    if len(set(hashes.values())) > 1:
        first, *_, last = sorted(hashes, key=lambda name: str(hashes[name]))
        raise UserError(
            f"was tokenized by {known[last].get('name')}, and {first} by another, {known[first].get('name')}",
            where=f"data.sources.{last}",
            fix="prepare all sources with one tokenizer",
        )
    if without := sorted(set(shards) - set(known)):
        logging.warning("nothing says which tokenizer made %s: its tokens are taken as they are", ", ".join(without))
    return next(iter(known.values()), {})


def _text_corpus(
    config: DataConfig,
    shards: dict[str, ShardSource],
    made_by: dict[str, Any],
    vocab_size: int,
    cache: Path,
    benchmarks: Benchmarks,
) -> Corpus:
    splits = {}
    for name, source in sorted(config.sources.items()):
        if name not in shards:
            documents = read_source(name, source.path)
            if benchmarks:
                benchmarks.check_texts(name, documents)
            splits[name] = split_held_out(documents, config.held_out)
    given = config.tokenizer or next((_beside(source) for source in shards.values() if _beside(source)), None)
    if given is None and shards:
        raise UserError("is needed for text beside shards", where="data.tokenizer", fix="give the shards' tokenizer")
    if given is not None:
        tokenizer = load_text_tokenizer(given)
        if made_by.get("sha256") not in (None, tokenizer.hash):
            raise UserError(f"{given} did not make the shards", where="data.tokenizer", fix=f"give {made_by['name']}")
        return _of_text(config, splits, tokenizer.size, tokenizer, cache)
    wanted = config.vocab_size or min(vocab_size, LARGEST_TRAINED_VOCABULARY)
    if not 257 <= wanted <= vocab_size:
        raise UserError(
            f"is {wanted}, and the model's embedding has {vocab_size} rows",
            where="data.vocab_size",
            fix="choose 257 to model.vocab_size",
        )
    texts = (document.text for train, _ in splits.values() for document in train)
    try:
        trained = load_or_train(texts, wanted, cache)
    except OSError as error:
        raise _unwritable(error) from None
    return _of_text(config, splits, int(trained.get_vocab_size()), trained, cache)


def _of_text(
    config: DataConfig,
    splits: dict[str, tuple[list[Document], list[Document]]],
    vocab_size: int,
    tokenizer: Any,
    cache: Path,
) -> Corpus:
    sources = {}
    try:
        for name, (train, held_out) in splits.items():
            stream, digest = _tokens(train, tokenizer, cache)
            kept, _ = _tokens(held_out, tokenizer, cache)
            made = is_synthetic(config.sources[name].path)
            sources[name] = Source(name, config.sources[name], stream, kept, digest, made)
    except OSError as error:
        raise _unwritable(error) from None
    return Corpus(sources, vocab_size, getattr(tokenizer, "end", END_ID), tokenizer)


def _tokens(documents: list[Document], tokenizer: Any, cache: Path) -> tuple[ArrayStream, str]:
    """Return the documents' tokens in one array, an end-of-document token after each, and the hash of all of it."""
    ours = hasattr(tokenizer, "hash")
    digest = hashlib.sha256(tokenizer.hash.encode() if ours else tokenizer.to_str().encode())
    for document in documents:
        digest.update(document.text.encode("utf-8", errors="surrogatepass"))
        digest.update(b"\0")
    name = digest.hexdigest()[:24]
    path = cache / f"tokens-{name}.int32"
    names = [document.identity for document in documents]
    end = tokenizer.end if ours else END_ID
    if not (path.is_file() and path.stat().st_size):
        parts = [np.append(ids, end).astype("<i4") for ids in _encode(tokenizer, [entry.text for entry in documents])]
        tokens = np.concatenate(parts) if parts else np.zeros(0, dtype="<i4")
        write_atomically(path, tokens.tobytes())
    else:
        tokens = np.memmap(path, dtype="<i4", mode="r")  # ranks of one machine share the pages
    ends = np.flatnonzero(tokens == end) + 1
    return ArrayStream(tokens, np.diff(ends, prepend=0), names), name


def _encode(tokenizer: Any, texts: list[str]) -> list[NDArray[np.int32]]:
    if hasattr(tokenizer, "hash"):
        encoded: list[NDArray[np.int32]] = tokenizer.encode(texts)
        return encoded
    return [np.asarray(encoding.ids, dtype="<i4") for encoding in tokenizer.encode_batch_fast(texts)]


def _beside(source: ShardSource) -> str | None:
    """Return the tokenizer file that a prepared dataset holds."""
    if source.folder is None:
        return None
    suffix = Path(str(source.tokenizer.get("name", ""))).suffix
    file = source.folder / f"tokenizer{suffix}"
    return str(file) if file.is_file() else None


def _unwritable(error: OSError) -> UserError:
    return UserError(f"cannot be written: {error}", where="data.cache_dir", fix="choose another folder")


__all__ = ["Corpus", "Source", "TextTokenizer", "build_corpus", "mixture_of"]
