"""Batches for this rank: the global order cut by range arithmetic; any number of ranks sees the same samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.data.corpus import Corpus, Tokens, window_counts
from isthmus.data.order import Order
from isthmus.errors import UserError


@dataclass(frozen=True)
class Microbatch:
    """B samples of S tokens; `sources` names each sample's source ("" for padding)."""

    tokens_BS: Tensor
    labels_BS: Tensor
    mask_BS: Tensor
    sources: tuple[str, ...]


class MixtureLoader:
    """Serves the samples of one data-parallel rank, step by step; its state is the number of samples served to all.

    Args:
        data_rank: number of this rank among the data-parallel ranks of all sites.
        data_size: how many these are.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        sequence_length: int,
        global_batch: int,
        micro_batch: int,
        data_rank: int,
        data_size: int,
        seed: int,
    ) -> None:
        self._streams = {name: source.train for name, source in corpus.sources.items()}
        self._held_out = {name: source.held_out for name, source in corpus.sources.items()}
        self._sequence_length, self._global_batch, self._micro_batch = sequence_length, global_batch, micro_batch
        self._data_rank, self._data_size = data_rank, data_size
        self.order = mixture_order(corpus, sequence_length, seed)
        self._samples = 0

    def next_step(self) -> list[Microbatch]:
        """Return this rank's microbatches of the next global batch and move on."""
        share = self._global_batch // self._data_size
        first = self._samples + self._data_rank * share
        self._samples += self._global_batch
        return [
            self._microbatch(range(start, start + self._micro_batch))
            for start in range(first, first + share, self._micro_batch)
        ]

    def mix(self) -> dict[str, int]:
        """Return how many samples each source has given so far, over all ranks."""
        return self.order.counts(0, self._samples)

    def held_out(self, samples_per_source: int, *, multiple: int, part: int, parts: int) -> list[Microbatch]:
        """Return one of several parts of the held-out windows, evenly spread over each source, always the same ones.

        The number of microbatches is a multiple of `multiple` and equal for every part; padding has mask 0.
        """
        windows: list[tuple[str, int]] = []
        for name, count in window_counts(self._held_out, self._sequence_length).items():
            taken = min(samples_per_source, count)
            windows += [(name, index * count // taken) for index in range(taken)]
        mine: list[tuple[str, int] | None] = list(windows[part::parts])
        per_rank = -(-len(windows) // parts)
        batches = -(-per_rank // self._micro_batch)
        batches = -(-batches // multiple) * multiple
        mine += [None] * (batches * self._micro_batch - len(mine))
        return [
            self._pack([self._held_out_window(entry) for entry in mine[start : start + self._micro_batch]])
            for start in range(0, len(mine), self._micro_batch)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._samples = int(state["samples"])

    def _microbatch(self, samples: Sequence[int]) -> Microbatch:
        positions = [self.order[sample] for sample in samples]
        return self._pack(
            [(position.source, self._window(self._streams[position.source], position.window)) for position in positions]
        )

    def _held_out_window(self, entry: tuple[str, int] | None) -> tuple[str, Tokens]:
        if entry is None:
            return "", np.zeros(self._sequence_length + 1, dtype=np.int32)
        return entry[0], self._window(self._held_out[entry[0]], entry[1])

    def _window(self, stream: Tokens, index: int) -> Tokens:
        start = index * self._sequence_length
        return stream[start : start + self._sequence_length + 1]

    def _pack(self, samples: list[tuple[str, Tokens]]) -> Microbatch:
        stacked = torch.from_numpy(np.stack([window for _, window in samples]).astype(np.int64))
        mask = torch.tensor([[float(bool(source))] for source, _ in samples]).expand(-1, self._sequence_length)
        return Microbatch(
            tokens_BS=stacked[:, :-1].contiguous(),
            labels_BS=stacked[:, 1:].contiguous(),
            mask_BS=mask.contiguous(),
            sources=tuple(source for source, _ in samples),
        )


def mixture_order(corpus: Corpus, sequence_length: int, seed: int) -> Order:
    windows = window_counts({name: source.train for name, source in corpus.sources.items()}, sequence_length)
    return Order(windows, {name: source.weight for name, source in corpus.sources.items()}, seed)


def validate_corpus(
    corpus: Corpus, *, sequence_length: int, global_batch: int, steps: int, seed: int, held_out: bool
) -> None:
    """Refuse a corpus that cannot feed the run.

    Raises:
        UserError: a source without one window, fewer windows than one global batch, a source repeated beyond its
            `max_epochs`, or nothing to evaluate on.
    """
    for name, source in corpus.sources.items():
        if len(source.train) <= sequence_length:
            raise UserError(
                f"has {len(source.train)} training tokens, fewer than one sample of {sequence_length} + 1",
                where=f"data.sources.{name}",
                fix="add text or lower train.sequence_length",
            )
        if held_out and len(source.held_out) <= sequence_length:
            raise UserError(
                f"has {len(source.held_out)} held-out tokens, fewer than one sample of {sequence_length} + 1",
                where=f"data.sources.{name}",
                fix="add documents, raise data.held_out or set eval.every_steps=0",
            )
    order = mixture_order(corpus, sequence_length, seed)
    available = sum(order.windows.values())
    if available < global_batch:
        raise UserError(
            f"the corpus has {available} samples of {sequence_length} tokens, fewer than one batch of {global_batch}",
            where="data.sources",
            fix="add text or lower train.global_batch",
        )
    for name, epochs in order.epochs(steps * global_batch).items():
        limit = corpus.sources[name].max_epochs
        if limit is not None and epochs > limit:
            raise UserError(
                f"{steps} steps x {global_batch} samples would pass over it {epochs:.1f} times, {limit:g} are allowed",
                where=f"data.sources.{name}.max_epochs",
                fix="shorten the run, lower the source's weight or raise the limit",
            )
