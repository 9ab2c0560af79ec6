"""The engine's loss on fixed weights equals that of transformers' LlamaForCausalLM, an independent implementation."""

import datetime

import numpy as np
import pytest
from numpy.typing import NDArray
from support.engines import assemble, compose_nano, rank_batches, snapshot, topology_of
from support.ranks import RankWorld, run_ranks

from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.topology import head_dim, padded_vocab_size
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
    from transformers import LlamaConfig, LlamaForCausalLM

    width = head_dim(model)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=padded_vocab_size(model),
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.num_query_groups,
            head_dim=width,
            rms_norm_eps=model.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": model.rope_base},
            tie_word_embeddings=model.tied_embeddings,
            attention_bias=False,
            mlp_bias=False,
            attn_implementation="eager",
        )
    )
    mapped = {
        "model.embed_tokens.weight": weights["embedding.word_embeddings.weight"],
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
        "lm_head.weight": weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"]),
    }
    per_group = model.num_attention_heads // model.num_query_groups
    for number in range(model.num_layers):
        ours, theirs = f"decoder.layers.{number}", f"model.layers.{number}"
        # Megatron keeps, group by group, the group's query heads, its key head and its value head.
        qkv = weights[f"{ours}.self_attention.linear_qkv.weight"]
        groups = qkv.reshape(model.num_query_groups, per_group + 2, width, model.hidden_size)
        mapped |= {
            f"{theirs}.self_attn.q_proj.weight": groups[:, :per_group].reshape(-1, model.hidden_size),
            f"{theirs}.self_attn.k_proj.weight": groups[:, per_group].reshape(-1, model.hidden_size),
            f"{theirs}.self_attn.v_proj.weight": groups[:, per_group + 1].reshape(-1, model.hidden_size),
            f"{theirs}.self_attn.o_proj.weight": weights[f"{ours}.self_attention.linear_proj.weight"],
            f"{theirs}.mlp.gate_proj.weight": weights[f"{ours}.mlp.linear_fc1.gate.weight"],
            f"{theirs}.mlp.up_proj.weight": weights[f"{ours}.mlp.linear_fc1.up.weight"],
            f"{theirs}.mlp.down_proj.weight": weights[f"{ours}.mlp.linear_fc2.weight"],
            f"{theirs}.input_layernorm.weight": weights[f"{ours}.input_layernorm.weight"],
            f"{theirs}.post_attention_layernorm.weight": weights[f"{ours}.pre_mlp_layernorm.weight"],
        }
    missing = llama.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in mapped.items()})
    assert not missing.missing_keys
    assert not missing.unexpected_keys
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
