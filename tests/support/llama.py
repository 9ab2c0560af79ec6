"""transformers' LlamaForCausalLM with the weights of one of our models."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.topology import head_dim, padded_vocab_size


def llama_of(model: ModelConfig, weights: Mapping[str, Tensor], **options: Any) -> Any:
    """Return the equivalent LlamaForCausalLM; `weights` are whole tensors by global name."""
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
            bos_token_id=None,
            eos_token_id=None,
            **options,
        )
    ).eval()
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
    loaded = llama.load_state_dict({name: value.detach().clone() for name, value in mapped.items()})
    assert not loaded.missing_keys
    assert not loaded.unexpected_keys
    return llama


def whole_weights(model: Any) -> dict[str, Tensor]:
    """Return the weights of an InferenceModel by global name."""
    return {where.name: flat.view(where.shape) for where, flat in model.parameters()}
