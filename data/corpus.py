"""Tokenised sources: a training and a held-out stream of tokens each, the same on every rank of every site."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from isthmus.data.config import DataConfig
from isthmus.data.documents import Document, read_source, split_held_out
from isthmus.data.tokenizer import END_ID, load_or_train
from isthmus.errors import UserError
from isthmus.files import write_atomically

LARGEST_TRAINED_VOCABULARY = 8_192

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Source:
    """One source's token streams, documents joined by the end-of-document token."""

    name: str
    weight: float
    max_epochs: float | None
    train: Tokens
    held_out: Tokens


@dataclass(frozen=True)
class Corpus:
    tokenizer: Tokenizer
    sources: dict[str, Source]

    @property
    def vocab_size(self) -> int:
        return int(self.tokenizer.get_vocab_size())


def build_corpus(config: DataConfig, vocab_size: int) -> Corpus:
    """Read, split and tokenise every source; tokenizer and tokens come from the cache where their hashes are known.

    Raises:
        UserError: no sources, an unreadable or empty one, a weight that is not positive, an unwritable cache.
    """
    if not config.sources:
        raise UserError("there are none", where="data.sources", fix="use data=embedded or name some in a file")
    for name, source in config.sources.items():
        if source.weight <= 0:
            raise UserError(f"is {source.weight}", where=f"data.sources.{name}.weight", fix="it must be positive")
        if source.max_epochs is not None and source.max_epochs <= 0:
            raise UserError(
                f"is {source.max_epochs}", where=f"data.sources.{name}.max_epochs", fix="it must be positive"
            )
    if not 0 <= config.held_out < 0.5:
        raise UserError(f"is {config.held_out}", where="data.held_out", fix="choose a fraction from 0 to below 0.5")
    wanted = config.vocab_size or min(vocab_size, LARGEST_TRAINED_VOCABULARY)
    if not 257 <= wanted <= vocab_size:
        raise UserError(
            f"is {wanted}, and the model's embedding has {vocab_size} rows",
            where="data.vocab_size",
            fix="choose 257 to model.vocab_size",
        )
    splits = {
        name: split_held_out(read_source(name, source.path), config.held_out)
        for name, source in sorted(config.sources.items())
    }
    cache = Path(config.cache_dir).expanduser()
    try:
        texts = (document.text for train, _ in splits.values() for document in train)
        tokenizer = load_or_train(texts, wanted, cache)
        sources = {
            name: Source(
                name=name,
                weight=config.sources[name].weight,
                max_epochs=config.sources[name].max_epochs,
                train=_tokens(train, tokenizer, cache),
                held_out=_tokens(held_out, tokenizer, cache),
            )
            for name, (train, held_out) in splits.items()
        }
    except OSError as error:
        raise UserError(f"cannot be written: {error}", where="data.cache_dir", fix="choose another folder") from None
    return Corpus(tokenizer, sources)


def window_counts(streams: Mapping[str, Tokens], sequence_length: int) -> dict[str, int]:
    """Return how many windows of `sequence_length` tokens and their successors each stream holds."""
    return {name: max(0, (len(stream) - 1) // sequence_length) for name, stream in streams.items()}


def _tokens(documents: list[Document], tokenizer: Tokenizer, cache: Path) -> Tokens:
    """Return the documents' tokens in one array, an end-of-document token after each."""
    digest = hashlib.sha256(tokenizer.to_str().encode())
    for document in documents:
        digest.update(document.text.encode("utf-8", errors="surrogatepass"))
        digest.update(b"\0")
    path = cache / f"tokens-{digest.hexdigest()[:24]}.int32"
    if path.is_file() and path.stat().st_size:
        return np.memmap(path, dtype="<i4", mode="r")  # ranks of one machine share the pages
    encoded = tokenizer.encode_batch_fast([document.text for document in documents])
    parts = [np.asarray([*encoding.ids, END_ID], dtype="<i4") for encoding in encoded]
    tokens: Tokens = np.concatenate(parts) if parts else np.zeros(0, dtype="<i4")
    write_atomically(path, tokens.tobytes())
    return tokens
