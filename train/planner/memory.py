"""Bytes of one rank, by kind, on the fullest pipeline stage."""

import math
from dataclasses import dataclass, fields, replace

from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.shape import Shape

USABLE = 0.92  # of the memory: CUDA's context, the collectives' buffers and fragmentation take the rest (assumption)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes. `fragments` are local sync's outer parameters, momentum and deltas; `staging` what waits for the link."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    fragments: float
    staging: float

    @property
    def total(self) -> float:
        return sum(getattr(self, entry.name) for entry in fields(self))


def rank_params(shape: Shape, layout: Layout) -> tuple[float, float]:
    """Return the dense and the expert parameters of the fullest rank (the first or the last stage)."""
    layers = shape.layers / layout.pipeline
    experts = layers * shape.ffn_params * shape.experts
    dense = layers * shape.layer_params - experts
    ends = shape.embedding_params if layout.pipeline == 1 else shape.hidden * (shape.vocabulary + shape.positions)
    return (dense + ends) / layout.tensor, experts / layout.tensor / layout.expert


def state_bytes(layout: Layout) -> tuple[float, float, float]:
    """Return bytes per parameter of parameters, gradients and optimizer state (Megatron-core, distributed optimizer).

    With data-parallel size d: bf16 gradients 4 + 16/d, fp32 gradients 6 + 12/d, all fp32 8 + 8/d; without a distributed
    optimizer d = 1.
    """
    d = layout.data * layout.context if layout.distributed_optimizer else 1
    if layout.precision == "fp32":
        return 4.0, 4.0, 8.0 / d
    if layout.gradient_bytes == 2:
        return 2.0, 2.0, 16.0 / d  # fp32 parameters, moments and a fp32 copy of the gradients
    return 2.0, 4.0, 12.0 / d


def layer_activation_bytes(shape: Shape, layout: Layout) -> float:
    """Return what one layer keeps of one microbatch for its backward pass.

    Counted tensor by tensor as in arXiv 2205.05198, section 4: GPT's layer comes to s b h (34 + 5 a s / h).
    """
    tokens = layout.micro_batch * layout.sequence_length / layout.context
    e = 4 if layout.precision == "fp32" else 2
    t = layout.tensor
    along = t if layout.sequence else 1
    if layout.recompute == "full":
        return tokens * e * shape.hidden / along
    experts = shape.experts_per_token if shape.experts else 1
    # Inputs of both norms, of the qkv product and of the block; two dropout masks.
    whole = shape.hidden * (4 * e + (2 if shape.dropout else 0))
    # Queries, keys, values, attention's output; the inner layer before and after its activation.
    inner = (2 * shape.attention_width + 2 * shape.kv_width) * e + (3 if shape.gated else 2) * shape.ffn * e * experts
    scores = 0.0
    if layout.attention == "core" and layout.recompute == "none":
        # Softmax's output; with dropout its mask and output too.
        scores = shape.heads * layout.sequence_length * (e + (e + 1 if shape.dropout else 0))
    return tokens * (whole / along + (inner + scores) / t)


def in_flight_layers(shape: Shape, layout: Layout, microbatches: int) -> float:
    """Return how many layers' activations the first stage holds at once.

    1F1B: p microbatches of l/p layers. Interleaved: 1 + (p-1)/(p v) times as many (arXiv 2205.05198, section 4.2.3).
    """
    p, v = layout.pipeline, layout.virtual_pipeline
    most = microbatches * shape.layers / p
    return min(most, shape.layers * (1 + (p - 1) / (p * v) if v > 1 else 1.0))


def memory(shape: Shape, layout: Layout, sync: Sync, microbatches: int) -> Memory:
    """Return what the fullest rank holds; activations of the first stage, or the last with its logits."""
    dense, experts = rank_params(shape, layout)
    parameter, gradient, optimizer = state_bytes(layout)
    params = dense + experts
    data = layout.data * layout.context
    expert_data = max(1.0, data / layout.expert)
    # Experts are replicated less often, so their optimizer state is cut into fewer parts.
    fewer = data / expert_data if layout.distributed_optimizer else 1.0
    owned = dense / data + experts / expert_data if layout.distributed_optimizer else params

    kept = layer_activation_bytes(shape, layout)
    tokens = layout.micro_batch * layout.sequence_length / layout.context
    logits = tokens * shape.vocabulary / layout.tensor * (6 if shape.dropout else 4)
    first = kept * in_flight_layers(shape, layout, microbatches)
    last = kept * shape.layers / layout.pipeline
    working = 0.0
    if layout.recompute == "full":  # one layer at a time is there in full
        working = layer_activation_bytes(shape, replace(layout, recompute="none"))
    if layout.pipeline > 1:
        activations, shown_logits = (last, logits) if last + logits > first else (first, 0.0)
    else:
        activations, shown_logits = first, logits
    fragments, staging = _sync_bytes(sync, owned, layout)
    return Memory(
        parameters=parameter * params,
        gradients=gradient * params,
        optimizer=optimizer * (dense + experts * fewer),
        activations=activations + working,
        logits=shown_logits,
        fragments=fragments,
        staging=staging,
    )


def _sync_bytes(sync: Sync, owned: float, layout: Layout) -> tuple[float, float]:
    """Return bytes of outer state and of what is on its way, of the parameters that this rank owns."""
    if sync.kind == "none":
        return 0.0, 0.0
    values = 4.0 + (4.0 if sync.wire != "fp32" else 0.0) + 2 * sync.bits / 8  # packed numbers, their error, payloads
    if sync.kind == "exact":
        return 0.0, values * owned
    return 12.0 * owned, values * owned  # outer parameters, momentum and deltas (parallelism/sites/local.py)


def checkpoint_bytes(shape: Shape) -> float:
    """Return the bytes of one checkpoint: bf16 parameters, fp32 main parameters and two moments."""
    return 14.0 * shape.params


def smallest_model_parallel(shape: Shape, limit_bytes: float) -> int:
    """Return how many ranks the states alone need, for messages about memory that no layout fits."""
    return math.ceil(6.0 * shape.params / limit_bytes)
