"""Megatron's own distributed format (`torch_dist`), for its tools and its loader on any TP x PP x EP.

Several processes share the work: each reads, holds and writes its share of the parameters, so that a model larger than
one machine's memory can be exported.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter, save

from isthmus.files import write_atomically
from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.topology import VOCAB_MULTIPLE, head_dim, padded_vocab_size
from isthmus.train.export.source import DTYPES, Source

_TRACKER = "latest_checkpointed_iteration.txt"  # where Megatron looks for the newest step
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(.+)")
_HALVES = {"gate": 0, "up": 1}  # of the SwiGLU's first matrix
_EMBEDDINGS = ("embedding.word_embeddings.weight", "output_layer.weight")
# Megatron's names are transformer-engine's, which fuses a norm into the linear layer that follows.
_FUSED_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
# Layers that keep more than parameters where they are transformer-engine's: its loader asks for what we do not have.
_WITH_EXTRA_STATE = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention")


def export_torch_dist(source: Source, folder: Path, precision: str, *, rank: int, ranks: int) -> None:
    """Write `folder/iter_...` and, last, the tracker file; called by all processes of the default group together."""
    target = folder / f"iter_{source.manifest.step:07d}"
    if rank == 0:
        target.mkdir()
    torch.distributed.barrier()
    entries: dict[str, Any] = {}
    for name, tensor in source.read(share_of(source.shapes, rank, ranks)):
        for number, entry in enumerate(sharded_tensors(name, tensor.to(DTYPES[precision]), source.model)):
            entries[f"{name}/{number}"] = entry
    if rank == 0:
        entries |= {entry.unique_key: entry for entry in _empty_extra_states(source.model)}
    state = {
        "args": _arguments(source, precision),
        "checkpoint_version": 3.0,
        "iteration": source.manifest.step,
        "model": entries,
    }
    strategy = _InThisProcess("torch_dist", 1)
    dist_checkpointing.save(state, str(target), strategy, content_metadata={"singleton_local_shards": False})
    if rank == 0:
        write_atomically(folder / _TRACKER, str(source.manifest.step).encode())


class _InThisProcess(TorchDistSaveShardedStrategy):
    """Megatron's names and plan with torch's writer: Megatron's own starts processes for what is done once."""

    def save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> None:
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        save(
            mcore_to_pyt_state_dict(by_key, False),
            storage_writer=FileSystemWriter(checkpoint_dir),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def share_of(shapes: dict[str, tuple[int, ...]], rank: int, ranks: int) -> list[str]:
    """Return the parameters that a process exports: neighbours, about as many numbers as any other's."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    total, passed, chosen = sum(sizes.values()), 0, []
    for name, size in sizes.items():
        middle = passed + size / 2
        if min(int(middle * ranks / total), ranks - 1) == rank:
            chosen.append(name)
        passed += size
    return chosen


def sharded_tensors(name: str, tensor: Tensor, model: ModelConfig) -> Iterator[ShardedTensor]:
    """Yield what Megatron calls a global parameter: layers and experts are leading axes of one tensor."""
    if (match := _LAYER.fullmatch(name)) is None:
        yield ShardedTensor.from_rank_offsets(name, tensor, allow_shape_mismatch=name in _EMBEDDINGS)
        return
    offsets, rest = [(0, int(match[1]), model.num_layers)], match[2]
    if (expert := _EXPERT.fullmatch(rest)) is not None:
        offsets.append((1, int(expert[1]), model.num_experts))
        rest = f"mlp.experts.experts.{expert[2]}"
    axes = len(offsets)
    if (half := re.fullmatch(r"(.+\.linear_fc1)\.(gate|up)\.weight", rest)) is not None:
        offsets.append((axes, _HALVES[half[2]], 2))
        rest = f"{half[1]}.weight"
    keys = [_FUSED_NORMS.get(rest, rest)]
    if model.num_experts and rest == "pre_mlp_layernorm.weight":
        keys.append(rest)  # before experts, transformer-engine's layers do not fuse it and Megatron's own call it so
    for key in keys:
        yield ShardedTensor.from_rank_offsets(f"decoder.layers.{key}", tensor, *offsets, prepend_axis_num=axes)


def _empty_extra_states(model: ModelConfig) -> Iterator[ShardedObject]:
    layers, experts = model.num_layers, model.num_experts
    of_layers = _WITH_EXTRA_STATE if experts else (*_WITH_EXTRA_STATE, "mlp.linear_fc1", "mlp.linear_fc2")
    for layer in range(layers):
        for name in of_layers:
            yield ShardedObject(f"decoder.layers.{name}._extra_state", None, (layers,), (layer,))
        for expert in range(experts):
            for name in ("linear_fc1", "linear_fc2"):
                key = f"decoder.layers.mlp.experts.experts.{name}._extra_state"
                yield ShardedObject(key, None, (layers, experts), (layer, expert))
    yield ShardedObject("decoder.final_layernorm._extra_state", None, (1,), (0,))


def _arguments(source: Source, precision: str) -> argparse.Namespace:
    """Return what Megatron's scripts read with --use-checkpoint-args."""
    model, config = source.model, source.manifest.config
    samples = source.manifest.step * int(config["train.global_batch"])
    return argparse.Namespace(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        group_query_attention=model.num_query_groups != model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=head_dim(model),
        seq_length=source.sequence_length,
        max_position_embeddings=source.sequence_length,
        position_embedding_type="rope",
        add_position_embedding=False,
        use_rotary_position_embeddings=True,
        rotary_base=int(model.rope_base),
        rotary_percent=1.0,
        rotary_interleaved=False,
        normalization="RMSNorm",
        norm_epsilon=model.norm_epsilon,
        apply_layernorm_1p=False,
        swiglu=True,
        add_bias_linear=False,
        add_qkv_bias=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        untie_embeddings_and_output_weights=not model.tied_embeddings,
        vocab_size=model.vocab_size,
        padded_vocab_size=padded_vocab_size(model),
        make_vocab_size_divisible_by=VOCAB_MULTIPLE,
        tokenizer_type="NullTokenizer",
        num_experts=model.num_experts or None,
        moe_router_topk=model.experts_per_token,
        moe_ffn_hidden_size=model.ffn_hidden_size if model.num_experts else None,
        bf16=precision == "bf16",
        fp16=False,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        expert_model_parallel_size=1,
        iteration=source.manifest.step,
        consumed_train_samples=samples,
        consumed_valid_samples=0,
        ckpt_format="torch_dist",
    )
