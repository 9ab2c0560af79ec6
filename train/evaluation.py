"""Held-out loss of each source."""

from collections.abc import Sequence
from typing import Protocol

import torch

from isthmus.parallelism.engine import Engine, Microbatch


class LabelledMicrobatch(Microbatch, Protocol):
    @property
    def sources(self) -> tuple[str, ...]: ...


def held_out_losses(
    engine: Engine, microbatches: Sequence[LabelledMicrobatch], sources: Sequence[str]
) -> dict[str, float]:
    """Return the mean loss per token of each source over the held-out samples of all ranks, in nats."""
    sums_per_sample = engine.evaluate(microbatches)
    index = {name: position for position, name in enumerate(sources)}
    rows = [index.get(source, len(sources)) for batch in microbatches for source in batch.sources]
    sums = torch.zeros(len(sources) + 1, 2, dtype=torch.float64, device=sums_per_sample.device)
    sums.index_add_(0, torch.tensor(rows, device=sums.device), sums_per_sample)
    totals = engine.sum_over_data_ranks(sums).tolist()
    return {name: totals[index[name]][0] / totals[index[name]][1] for name in sources if totals[index[name]][1]}
