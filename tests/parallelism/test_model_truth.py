"""The engine's loss on fixed weights equals that of transformers' LlamaForCausalLM, an independent implementation."""

import datetime

import numpy as np
import pytest
from numpy.typing import NDArray
from support.engines import assemble, compose_nano, rank_batches, snapshot, topology_of
from support.llama import llama_of
from support.ranks import RankWorld, run_ranks

from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.groups import site_groups
from isthmus.train.assembly import build_engine

pytest.importorskip("transformers", reason="the reference comes with the test extra")

Weights = dict[str, NDArray[np.float32]]


def _engine_losses(world: RankWorld, overrides: list[str]) -> tuple[Weights, list[tuple[float, float]]]:
    """Return the weights and the (sum, tokens) of each sample of one batch."""
    config = compose_nano(*overrides)
    topology = topology_of(config, world)
    timeout = datetime.timedelta(seconds=300)
    with site_groups(topology, rank=world.rank, timeout=timeout, init_method=world.init_method) as groups:
        engine = build_engine(config, groups)
        # Some steps away from the initial weights, so that norms are not all ones.
        for step in range(3):
            loss = engine.forward_backward(rank_batches(config, topology, world.rank, step))
            engine.gradient_norm(loss.tokens)
            engine.step(1e-2)
        sums = engine.evaluate(rank_batches(config, topology, world.rank, 9))
        return assemble([snapshot(list(engine.owned()), "parameter")]), sums.tolist()


def _reference_losses(model: ModelConfig, weights: Weights, overrides: list[str]) -> list[tuple[float, float]]:
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    llama = llama_of(model, tensors, attn_implementation="eager")
    config = compose_nano(*overrides)
    results = []
    for batch in rank_batches(config, topology_of(config, RankWorld(0, 1, "")), 0, 9):
        with torch.no_grad():
            logits = llama(batch.tokens_BS).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels_BS, reduction="none")
        results += [
            (float(row), float(count))
            for row, count in zip((losses * batch.mask_BS).sum(1), batch.mask_BS.sum(1), strict=True)
        ]
    return results


@pytest.mark.parametrize(
    "overrides",
    [[], ["model.tied_embeddings=true", "model.rope_base=500000.0"], ["model.num_query_groups=4", "model.head_dim=16"]],
    ids=["grouped-query", "tied", "narrow-heads"],
)
def test_loss_equals_the_reference(overrides: list[str]) -> None:
    ((weights, ours),) = run_ranks(_engine_losses, 1, overrides)
    theirs = _reference_losses(compose_nano(*overrides).model, weights, overrides)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
