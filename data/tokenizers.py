"""Tokenizers of any family behind one interface: text in, numbers out, and a hash of what they are."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isthmus.data.extras import need
from isthmus.data.tokenizer import END_OF_DOCUMENT
from isthmus.errors import UserError

_KNOWN_ENDS = (END_OF_DOCUMENT, "<|endoftext|>", "<|end_of_text|>", "<|end▁of▁sentence|>", "</s>", "<eos>", "[SEP]")
# cl100k_base's pattern of pre-tokens, as its own package tiktoken publishes it.
_CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"""
    r"""\s+(?!\S)|\s"""
)


class TextTokenizer(Protocol):
    """`size` is one more than the largest token; `end` the end-of-document token."""

    size: int
    end: int
    name: str
    hash: str

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...


def load_text_tokenizer(path: str | None, end_of_document: str | None = None) -> TextTokenizer:
    """Load a tokenizer by its path: `.json`, `.model` (sentencepiece), `.tiktoken`, or `tiktoken:NAME`.

    Raises:
        UserError: no such file or name, a damaged file, or no end-of-document token.
    """
    where = "data.tokenizer.path"
    if not path:
        raise UserError("is not given", where=where, fix="give a tokenizer file, or train one: isthmus data tokenizer")
    if path.startswith("tiktoken:"):
        return _Tiktoken(_tiktoken_by_name(path.removeprefix("tiktoken:")), path, end_of_document)
    file = Path(path).expanduser()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error}", where=where, fix="give a tokenizer file") from None
    families: dict[str, Callable[[bytes, str, str | None], TextTokenizer]] = {
        ".json": _HuggingFace,
        ".model": _SentencePiece,
        ".tiktoken": _tiktoken_of_file,
    }
    if file.suffix not in families:
        raise UserError(f"{file.name} is of no known kind", where=where, fix=f"it ends in {', '.join(families)}")
    try:
        loaded = families[file.suffix](content, file.name, end_of_document)
    except UserError:
        raise
    except Exception as error:  # each family has its own exceptions, and tokenizers raises bare ones
        raise UserError(f"{file.name} cannot be loaded: {error}", where=where, fix="check the file") from None
    return loaded


def of_content(content: bytes, name: str) -> TextTokenizer:
    """Return the tokenizer that the content of a `.json` file describes."""
    return _HuggingFace(content, name, None)


class _HuggingFace:
    def __init__(self, content: bytes, name: str, end: str | None) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_str(content.decode())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        self.end = _end_token(vocabulary, end, name)
        self.name, self.hash = name, _hash(content)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(entry.ids, dtype=np.int32) for entry in encoded]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False))


class _SentencePiece:
    def __init__(self, content: bytes, name: str, end: str | None) -> None:
        self._model: Any = need("sentencepiece").SentencePieceProcessor(model_proto=content)
        self.size = int(self._model.get_piece_size())
        if end is None and self._model.eos_id() >= 0:
            self.end = int(self._model.eos_id())
        else:
            pieces = {self._model.id_to_piece(number): number for number in range(self.size)}
            self.end = _end_token(pieces, end, name)
        self.name, self.hash = name, _hash(content)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return [np.array(ids, dtype=np.int32) for ids in self._model.encode(list(texts), num_threads=1)]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._model.decode([int(token) for token in tokens]))


class _Tiktoken:
    def __init__(self, encoding: Any, name: str, end: str | None) -> None:
        self._encoding = encoding
        self.size = int(encoding.max_token_value) + 1
        self.end = _end_token(encoding._special_tokens, end, name)
        ranks = b"".join(f"{rank} ".encode() + token for token, rank in encoding._mergeable_ranks.items())
        self.name, self.hash = name, _hash(ranks + encoding._pat_str.encode())

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return [np.array(self._encoding.encode_ordinary(text), dtype=np.int32) for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._encoding.decode([int(token) for token in tokens]))


def _tiktoken_of_file(content: bytes, name: str, end: str | None) -> _Tiktoken:
    import base64

    ranks = {}
    for line in content.splitlines():
        if line:
            token, _, rank = line.partition(b" ")
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    special = {end or "<|endoftext|>": len(ranks)}
    encoding = need("tiktoken").Encoding(name, pat_str=_CL100K, mergeable_ranks=ranks, special_tokens=special)
    return _Tiktoken(encoding, name, end)


def _tiktoken_by_name(name: str) -> Any:
    try:
        return need("tiktoken").get_encoding(name)
    except UserError:
        raise
    except Exception as error:  # an unknown name, or a download that fails
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{name} cannot be loaded: {reason}", where="data.tokenizer.path", fix="give a file") from None


def _end_token(vocabulary: dict[str, int], wanted: str | None, name: str) -> int:
    for token in [wanted] if wanted else _KNOWN_ENDS:
        if token in vocabulary:
            return int(vocabulary[token])
    what = f"{name} has no token '{wanted}'" if wanted else f"{name} has no end-of-document token that is known"
    raise UserError(what, where="data.tokenizer.end_of_document", fix="name one of its tokens")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe(tokenizer: TextTokenizer) -> dict[str, Any]:
    """Return what a manifest says of a tokenizer."""
    return json.loads(
        json.dumps({"name": tokenizer.name, "sha256": tokenizer.hash, "size": tokenizer.size, "end": tokenizer.end})
    )
