"""Bytes of one rank, by kind, of a pipeline stage or of the fullest one."""

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


def stage_params(shape: Shape, layout: Layout, stage: int) -> tuple[float, float]:
    """Return the dense and the expert parameters of a rank of a pipeline stage; the first has the embedding, the last
    the output layer (a copy of the embedding where they are tied)."""
    layers = shape.layers / layout.pipeline
    experts = layers * shape.ffn_params * shape.experts
    dense = layers * shape.layer_params - experts
    first, last = stage == 0, stage == layout.pipeline - 1
    if first and last:
        dense += shape.embedding_params
    else:
        dense += shape.hidden * ((shape.vocabulary + shape.positions) * first + shape.vocabulary * last)
    return dense / layout.tensor, experts / layout.tensor / layout.expert


def rank_params(shape: Shape, layout: Layout) -> tuple[float, float]:
    """Return the dense and the expert parameters of the fullest rank: the first stage's."""
    return stage_params(shape, layout, 0)


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


def in_flight_layers(shape: Shape, layout: Layout, microbatches: int, stage: int = 0) -> float:
    """Return how many layers' activations a stage holds at once.

    1F1B: p - i microbatches of l/p layers on stage i. Interleaved: 2 (p - i - 1) + (v - 1) p + 1 passes of l/(p v)
    layers (Megatron-core's warm-up), on the first stage 1 + (p-1)/(p v) times all layers (arXiv 2205.05198, 4.2.3).
    """
    p, v = layout.pipeline, layout.virtual_pipeline
    if v == 1:
        return min(microbatches, p - stage) * shape.layers / p
    passes = min(microbatches * v, 2 * (p - stage - 1) + (v - 1) * p + 1)
    return passes * shape.layers / (p * v)


def memory(shape: Shape, layout: Layout, sync: Sync, microbatches: int) -> Memory:
    """Return what the fullest rank holds: of the first stage, or the last one with its logits."""
    first = stage_memory(shape, layout, sync, microbatches, 0)
    if layout.pipeline == 1:
        return first
    last = stage_memory(shape, layout, sync, microbatches, layout.pipeline - 1)
    return max(first, last, key=lambda entry: entry.total)


def stage_memory(shape: Shape, layout: Layout, sync: Sync, microbatches: int, stage: int) -> Memory:
    """Return what a rank of a pipeline stage holds."""
    dense, experts = stage_params(shape, layout, stage)
    parameter, gradient, optimizer = state_bytes(layout)
    params = dense + experts
    data = layout.data * layout.context
    expert_data = max(1.0, data / layout.expert)
    # Experts are replicated less often, so their optimizer state is cut into fewer parts.
    fewer = data / expert_data if layout.distributed_optimizer else 1.0
    owned = dense / data + experts / expert_data if layout.distributed_optimizer else params
    activations = layer_activation_bytes(shape, layout) * in_flight_layers(shape, layout, microbatches, stage)
    if layout.recompute == "full":  # one layer at a time is there in full
        activations += layer_activation_bytes(shape, replace(layout, recompute="none"))
    logits = 0.0
    if stage == layout.pipeline - 1:
        tokens = layout.micro_batch * layout.sequence_length / layout.context
        logits = tokens * shape.vocabulary / layout.tensor * (6 if shape.dropout else 4)
    fragments, staging = _sync_bytes(sync, owned, layout)
    return Memory(
        parameters=parameter * params,
        gradients=gradient * params,
        optimizer=optimizer * (dense + experts * fewer),
        activations=activations,
        logits=logits,
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
