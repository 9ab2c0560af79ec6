"""The tokenizer that a run was trained with, found again from the run's configuration."""

from collections.abc import Mapping
from pathlib import Path

from isthmus.data.config import DataConfig
from isthmus.data.corpus import build_corpus
from isthmus.data.tokenizers import TextTokenizer, load_text_tokenizer, of_content
from isthmus.errors import UserError


def tokenizer_of_run(
    config: DataConfig, vocab_size: int, fingerprints: Mapping[str, str], *, sequence_length: int
) -> TextTokenizer:
    """Return the tokenizer of a run's texts or shards.

    Args:
        fingerprints: of the run's sources, as it read them.
        sequence_length: of the run's samples, on which the fingerprint of packed windows depends.

    Raises:
        UserError: a source cannot be read any more, holds something else now, or nothing says how it was tokenized.
    """
    if config.tokenizer:
        return load_text_tokenizer(config.tokenizer)
    corpus = build_corpus(config, vocab_size, sequence_length)
    for name, source in corpus.sources.items():
        if fingerprints.get(name, source.fingerprint) != source.fingerprint:
            raise UserError(
                "holds other data than when the run read it, so its tokenizer cannot be made again",
                where=f"data.sources.{name}",
                fix="restore it",
            )
    if corpus.tokenizer is not None:
        trained = corpus.tokenizer
        return trained if hasattr(trained, "hash") else of_content(trained.to_str().encode(), "trained.json")
    for given in config.sources.values():
        for path in sorted(Path(given.path or "").expanduser().glob("tokenizer.*")):
            return load_text_tokenizer(str(path))
    raise UserError("nothing says which tokenizer made the shards", where="data.tokenizer", fix="train with one given")
