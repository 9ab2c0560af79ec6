"""LlamaForCausalLM as transformers loads it: safetensors of some gigabytes each, tokenizer, and config.json last."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from isthmus.errors import UserError
from isthmus.files import write_json
from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.topology import head_dim
from isthmus.train.export.source import DTYPES, Source

SHARD_BYTES = 5 * 10**9  # as transformers cuts its own
_NAMES = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.gate.weight": "mlp.gate_proj.weight",
    "mlp.linear_fc1.up.weight": "mlp.up_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer: the JSON of the tokenizers library, and its end-of-document token."""

    json: str
    end: str
    end_id: int


def export_huggingface(
    source: Source,
    folder: Path,
    precision: str,
    tokenizer: TokenizerFile | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the model, one file in memory at a time, and its configuration last."""
    refuse_what_llama_is_not(source.model)
    dtype = DTYPES[precision]
    shards = _shards(source.shapes, dtype, shard_bytes)
    places: dict[str, str] = {}
    total = 0
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            theirs: part.to(dtype, copy=True).contiguous()
            for name, tensor in source.read(names)
            for theirs, part in llama_tensors(name, tensor, source.model)
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer.json, "utf-8")
        described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": tokenizer.end}
        write_json(folder / "tokenizer_config.json", described)
    write_json(
        folder / "config.json", llama_config(source, precision, tokenizer.end_id if tokenizer is not None else None)
    )


def refuse_what_llama_is_not(model: ModelConfig) -> None:
    """Make sure that LlamaForCausalLM can be this model.

    Raises:
        UserError: it has experts.
    """
    if model.num_experts:
        raise UserError("has experts, which Llama has not", where="--to huggingface", fix="use --to torch_dist")


def llama_tensors(name: str, tensor: Tensor, model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield what a global parameter is called in LlamaForCausalLM; attention's one matrix becomes three."""
    if name in _NAMES:
        # The rows that pad the vocabulary belong to no token.
        yield _NAMES[name], tensor[: model.vocab_size] if tensor.ndim == 2 else tensor
        return
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    assert match is not None, name
    layer, rest = f"model.layers.{match[1]}", match[2]
    if rest in _LAYER_NAMES:
        yield f"{layer}.{_LAYER_NAMES[rest]}", tensor
        return
    assert rest == "self_attention.linear_qkv.weight", name
    # Megatron keeps, group by group, the group's query heads, its key head and its value head.
    per_group = model.num_attention_heads // model.num_query_groups
    groups = tensor.view(model.num_query_groups, per_group + 2, head_dim(model), model.hidden_size)
    parts = {"q": groups[:, :per_group], "k": groups[:, per_group], "v": groups[:, per_group + 1]}
    for letter, part in parts.items():
        yield f"{layer}.self_attn.{letter}_proj.weight", part.reshape(-1, model.hidden_size)


def llama_config(source: Source, precision: str, end_id: int | None) -> dict[str, Any]:
    """Return config.json."""
    model = source.model
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": head_dim(model),
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_base},
        "max_position_embeddings": source.sequence_length,
        "tie_word_embeddings": model.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": model.init_std,
        "bos_token_id": None,
        "eos_token_id": end_id,
        "torch_dtype": str(DTYPES[precision]).removeprefix("torch."),
    }


def _shards(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, most_bytes: int) -> Sequence[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        bytes_here = math.prod(shape) * dtype.itemsize
        if shards[-1] and size + bytes_here > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_here
    return shards
