"""A byte-level BPE (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2), trained once for each corpus and size."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from isthmus.files import write_atomically

END_OF_DOCUMENT = "<|endofdocument|>"
END_ID = 0  # special tokens come first
_FORMAT = "bpe-1"  # part of every cache key: raise it when training changes


def load_or_train(texts: Iterable[str], vocab_size: int, cache_dir: Path) -> Tokenizer:
    """Return the tokenizer of these texts, from the cache where its content hash is known.

    Every merge must have been seen at least twice, so a small corpus may give fewer than `vocab_size` entries.
    """
    corpus = list(texts)
    digest = hashlib.sha256(f"{_FORMAT}/{vocab_size}".encode())
    for text in corpus:
        digest.update(text.encode("utf-8", errors="surrogatepass"))
        digest.update(b"\0")
    path = cache_dir / f"tokenizer-{digest.hexdigest()[:24]}.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    tokenizer = train(corpus, vocab_size)
    write_atomically(path, tokenizer.to_str().encode())
    return tokenizer


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer of at most `vocab_size` entries on texts, which are passed over once."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
