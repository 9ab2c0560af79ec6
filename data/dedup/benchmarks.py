"""Documents that hold a benchmark's words: n-grams of 13, as in GPT-3 (Brown et al., arXiv 2005.14165, appendix C)."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.data.dedup.signatures import shingle_hashes, words_of
from isthmus.errors import UserError

SHORTEST_NGRAM = 8  # shorter benchmark texts are compared whole, down to this; below, chance would match them


class BenchmarkNgrams:
    """The n-grams of benchmark files, by number of words."""

    def __init__(self, texts: Iterator[str], ngram: int) -> None:
        found: dict[int, list[NDArray[np.uint64]]] = {}
        for text in texts:
            words = words_of(text)
            size = min(len(words), ngram)
            if size >= min(SHORTEST_NGRAM, ngram):
                found.setdefault(size, []).append(shingle_hashes(words, size))
        self._hashes = {size: np.unique(np.concatenate(parts)) for size, parts in sorted(found.items())}

    def __len__(self) -> int:
        return sum(map(len, self._hashes.values()))

    def match(self, text: str) -> str | None:
        """Return the first run of words that a benchmark holds too, or None."""
        words = words_of(text) if self._hashes else []
        for size, known in self._hashes.items():
            if len(words) < size:
                continue
            hashes = shingle_hashes(words, size)
            places = np.searchsorted(known, hashes)
            places[places == len(known)] = 0
            hits = np.flatnonzero(known[places] == hashes)
            if len(hits):
                return " ".join(words[hits[0] : hits[0] + size])
        return None


def load_benchmarks(files: Sequence[str], ngram: int) -> BenchmarkNgrams:
    """Read benchmark files.

    Raises:
        UserError: a file cannot be read or holds nothing of enough words.
    """
    if files and ngram < 2:
        raise UserError(f"is {ngram}", where="data.decontaminate.ngram", fix="choose 13, or at least 2")
    loaded = BenchmarkNgrams((text for file in files for text in _texts(Path(file).expanduser())), ngram)
    if files and not len(loaded):
        raise UserError(
            f"hold no text of {min(SHORTEST_NGRAM, ngram)} words", where="data.decontaminate.files", fix="check them"
        )
    return loaded


def benchmark_hashes(files: Sequence[str], ngram: int) -> dict[str, list[str]]:
    """Return the SHA-256 of benchmark files by the length of the n-grams that they were compared by.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        hashes = [hashlib.sha256(Path(file).expanduser().read_bytes()).hexdigest() for file in files]
    except OSError as error:
        raise UserError(f"cannot be read: {error}", where="data.benchmarks", fix="give .txt or .jsonl files") from None
    return {str(ngram): sorted(hashes)} if hashes else {}


def _texts(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text("utf-8").split("\n")
        for line in lines:
            if path.suffix == ".jsonl":
                yield from _strings(json.loads(line)) if line.strip() else ()
            else:
                yield line
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read: {error}", where=f"data.decontaminate.files: {path}", fix="give .txt or .jsonl files"
        ) from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)
