"""From sample numbers to tensors: what the training process or a worker does for each step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isthmus.data.order import Order
from isthmus.data.permutation import Signed
from isthmus.data.shares import Division
from isthmus.data.streams import Stream

_PLANNED_SAMPLES = 1_024  # whose positions are computed at once: array arithmetic costs little more than for one


@dataclass(frozen=True)
class Microbatch:
    """B samples of S tokens; `sources` names each sample's source ("" for padding).

    `documents_BS` numbers each token's document from 0 where the model is to know them; `bad` says what of it could
    not be read, and was masked.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    mask_BS: Tensor
    sources: tuple[str, ...]
    documents_BS: Tensor | None = None
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cutting:
    """How samples are made of tokens; a token of `vocab_size` or more is damage.

    Args:
        end: the end-of-document token, needed to tell documents apart.
        tell_documents: fill `documents_BS`.
        mask_ends: no loss on the first token of a document, which nothing before it foretells.
        skip: ranges of samples that have no loss.
    """

    sequence_length: int
    micro_batch: int
    vocab_size: int
    end: int | None = None
    tell_documents: bool = False
    mask_ends: bool = False
    skip: tuple[range, ...] = ()


class BatchReader:
    """Reads samples by number."""

    def __init__(self, order: Order, streams: Mapping[str, Stream], cutting: Cutting) -> None:
        self.order, self.cutting = order, cutting
        self._streams = [streams.get(name) for name in order.names]

    def steps(self, division: Division, site: int, rank: int, batch: int, samples: range) -> Iterator[list[Microbatch]]:
        """Yield this rank's part of the global batches that begin at each of `samples` (whose step may skip some)."""
        share = len(division.of_rank(range(batch), site, rank))
        ahead = max(1, _PLANNED_SAMPLES // max(share, 1))
        for first in range(0, len(samples), ahead):
            ranges = [division.of_rank(range(at, at + batch), site, rank) for at in samples[first : first + ahead]]
            numbers = np.concatenate([np.arange(part.start, part.stop, dtype=np.int64) for part in ranges])
            found = self.order.positions(numbers)
            sources, offsets = found.source, found.offset
            at = 0
            for part in ranges:
                where = slice(at, at + len(part))
                yield self._read(numbers[where], sources[where], offsets[where])
                at += len(part)

    def read(self, samples: Sequence[int]) -> list[Microbatch]:
        """Return any samples, in microbatches."""
        numbers = np.asarray(samples, dtype=np.int64)
        found = self.order.positions(numbers)
        return self._read(numbers, found.source, found.offset)

    def _read(self, samples: Signed, sources: Signed, offsets: Signed) -> list[Microbatch]:
        cutting = self.cutting
        count, length = len(samples), cutting.sequence_length
        tokens, labels = (np.empty((count, length), dtype=np.int64) for _ in range(2))
        mask = np.ones((count, length), dtype=np.float32)
        bad: dict[int, str] = {}
        packed: dict[int, list[int]] = {}
        for source in np.unique(sources):
            stream = self._streams[source]
            assert stream is not None, f"no stream of {self.order.names[source]}"
            rows = np.flatnonzero(sources == source)
            raw = np.empty((len(rows), length + 1), dtype=stream.dtype)
            filled = stream.read(offsets[rows].tolist(), raw)
            failed = filled.bad
            if filled.ends is not None:
                packed |= zip(rows.tolist(), filled.ends, strict=True)
            for row in _beyond(raw, cutting.vocab_size):
                failed[row] = f"a token of {raw[row].max()} or more in a vocabulary of {cutting.vocab_size}"
                raw[row] = 0
            if len(rows) == count:
                tokens[:], labels[:] = raw[:, :-1], raw[:, 1:]
            else:
                tokens[rows], labels[rows] = raw[:, :-1], raw[:, 1:]
            for row, reason in failed.items():
                bad[int(rows[row])] = f"sample {samples[rows[row]]} of {self.order.names[source]}: {reason}"
        if bad:
            mask[list(bad)] = 0
        for skipped in cutting.skip:
            mask[(samples >= skipped.start) & (samples < skipped.stop)] = 0
        names = [self.order.names[source] for source in sources]
        return make_microbatches(tokens, labels, mask, names, cutting, bad, packed)


def make_microbatches(
    tokens: NDArray[np.int64],
    labels: NDArray[np.int64],
    mask: NDArray[np.float32],
    sources: Sequence[str],
    cutting: Cutting,
    bad: Mapping[int, str],
    packed: Mapping[int, Sequence[int]],
) -> list[Microbatch]:
    """Cut rows into microbatches of tensors, which share the arrays' memory.

    Args:
        packed: for rows of packed windows, the place after each document; elsewhere the end-of-document token tells.
    """
    documents = None
    if packed:
        _mask_padding(tokens, mask, cutting.end, packed)
    if cutting.tell_documents or cutting.mask_ends:
        assert cutting.end is not None
        ends = tokens == cutting.end
        for row, places in packed.items():
            ends[row] = False
            ends[row, [place - 1 for place in places if place <= tokens.shape[1]]] = True
        if cutting.mask_ends:
            mask = mask * ~ends
        if cutting.tell_documents:
            documents = torch.from_numpy(np.cumsum(ends, axis=1, dtype=np.int32) - ends.astype(np.int32))
    whole_tokens, whole_labels, whole_mask = (torch.from_numpy(array) for array in (tokens, labels, mask))
    step = cutting.micro_batch
    return [
        Microbatch(
            tokens_BS=whole_tokens[first : first + step],
            labels_BS=whole_labels[first : first + step],
            mask_BS=whole_mask[first : first + step],
            sources=tuple(sources[first : first + step]),
            documents_BS=None if documents is None else documents[first : first + step],
            bad=tuple(bad[row] for row in sorted(bad) if first <= row < first + step),
        )
        for first in range(0, len(tokens), step)
    ]


def _mask_padding(
    tokens: NDArray[np.int64], mask: NDArray[np.float32], end: int | None, packed: Mapping[int, Sequence[int]]
) -> None:
    """No loss on padding, nor on what follows a document that was cut: the token before foretells nothing of it."""
    for row, places in packed.items():
        mask[row, places[-1] - 1 if places else 0 :] = 0
        for place in places[:-1]:
            if tokens[row, place - 1] != end:
                mask[row, place - 1] = 0


def _beyond(raw: NDArray[np.integer], vocab_size: int) -> list[int]:
    """Return the rows with a token that is not in the vocabulary."""
    if not raw.size or (raw.dtype.kind == "u" and int(np.iinfo(raw.dtype).max) < vocab_size):
        return []
    if raw.max() < vocab_size and (raw.dtype.kind == "u" or raw.min() >= 0):
        return []
    outside = (raw >= vocab_size) | (raw < 0)
    return [int(row) for row in np.flatnonzero(outside.any(axis=1))]
