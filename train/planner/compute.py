"""Seconds of a layer and of the model's ends on one rank, part by part.

b samples of s tokens, tensor size t, context size c: every matrix product has b s / c rows.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from isthmus.train.planner.kernels import Device, Group, all_reduce, all_to_all, gather, group_of
from isthmus.train.planner.layout import Layout
from isthmus.train.planner.shape import Shape

# Kernels of one layer's forward pass, counted in Megatron's layer: GPT's with its own attention, and a Llama layer of
# fused kernels around flash attention. The backward pass launches twice as many.
_OPS_UNFUSED, _OPS_CORE, _OPS_FLASH = 30, 20, 14
_PRODUCTS_CORE, _PRODUCTS_FLASH = 6, 5
_OVERLAP_POWER = 4.0


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass through a layer: products, attention, elementwise, communication, and the host's launches."""

    matmul: float
    attention: float
    elementwise: float
    communication: float
    host: float

    @property
    def seconds(self) -> float:
        """The host launches ahead of the device; the slower one sets the pace, and near a tie each waits for the other.

        A power mean stands for that: it is within 3% of the larger where they differ by half.
        """
        power = _OVERLAP_POWER
        return float((self.host**power + self.device**power) ** (1 / power))

    @property
    def device(self) -> float:
        return self.matmul + self.attention + self.elementwise + self.communication


@dataclass(frozen=True)
class LayerTimes:
    forward: Pass
    backward: Pass
    recompute: float  # seconds of forward work that is done again in the backward pass

    @property
    def seconds(self) -> float:
        return self.forward.seconds + self.backward.seconds + self.recompute


def _products(shape: Shape, layout: Layout, tokens: float) -> list[tuple[float, float, float, float]]:
    """Return (rows, columns, inner, batch) of a layer's matrix products on one rank."""
    t = layout.tensor
    qkv = (shape.attention_width + 2 * shape.kv_width) / t
    ffn = shape.ffn / t
    rows, experts = tokens, 1.0
    if shape.experts:
        experts = shape.experts / layout.expert
        rows = tokens * shape.experts_per_token / experts
    return [
        (tokens, qkv, shape.hidden, 1),
        (tokens, shape.hidden, shape.attention_width / t, 1),
        (rows, ffn * (2 if shape.gated else 1), shape.hidden, experts),
        (rows, shape.hidden, ffn, experts),
    ]


def layer_times(shape: Shape, layout: Layout, device: Device) -> LayerTimes:
    """Return the seconds of one layer for one microbatch; they depend on neither depth, pipeline nor data size."""
    return _layer_times(
        replace(shape, layers=1),
        replace(layout, pipeline=1, virtual_pipeline=1, data=1, global_batch=1, bucket_params=1),
        device,
    )


@lru_cache(maxsize=20_000)
def _layer_times(shape: Shape, layout: Layout, device: Device) -> LayerTimes:
    tokens = layout.micro_batch * layout.sequence_length / layout.context
    products = _products(shape, layout, tokens)
    matmul_forward = sum(device.matmul(m, n, k, batch=b) for m, n, k, b in products)
    # Gradients of the inputs and of the weights. The latter are added to sums, read and written once a product, half of
    # it beside the arithmetic of the same kernel.
    matmul_backward = sum(device.matmul(m, k, n, batch=b) + device.matmul(k, n, m, batch=b) for m, n, k, b in products)
    weights = sum(n * k * b for _, n, k, b in products)
    matmul_backward += device.elementwise(weights * layout.gradient_bytes)

    attention_forward, attention_backward, scores = _attention(shape, layout, device, tokens)
    moved = _moved_bytes(shape, layout, device, tokens)
    ops, products_launched = _OPS_FLASH, _PRODUCTS_FLASH
    if layout.attention == "core":
        ops, products_launched = _OPS_CORE if layout.fused else _OPS_UNFUSED, _PRODUCTS_CORE
    elementwise = device.elementwise(moved) + (ops - products_launched) * device.constants.kernel_seconds

    communication = _communication(shape, layout, device, tokens, attention_forward)
    # Hosts wait for each other at every collective: the more there are, the later the last one.
    waiting = 2 * (layout.tensor - 1) * device.constants.collective_host_seconds
    host = ops * device.constants.op_seconds + waiting
    forward = Pass(matmul_forward, attention_forward, elementwise, communication, host)
    backward = Pass(
        matmul_backward,
        attention_backward,
        2 * elementwise,
        # With sequence parallelism the inputs of the column-parallel products are gathered once more, but beside the
        # products of the weight gradients (arXiv 2205.05198, section 4.2.2).
        communication,
        2 * ops * device.constants.op_seconds + waiting,
    )
    again = {"none": 0.0, "selective": scores, "full": forward.seconds}[layout.recompute]
    return LayerTimes(forward, backward, again)


def _attention(shape: Shape, layout: Layout, device: Device, tokens: float) -> tuple[float, float, float]:
    """Return forward and backward seconds of attention, and the seconds that selective recomputation repeats."""
    heads = shape.heads / layout.tensor
    if layout.attention == "flash":
        forward, backward = device.flash(tokens, layout.sequence_length, heads, shape.head_width)
        return forward, backward, 0.0
    s, d = layout.sequence_length, shape.head_width
    batch = layout.micro_batch * heads
    scores = device.matmul(s, s, d, batch=batch, attention=True)
    values = device.matmul(s, d, s, batch=batch, attention=True)
    e, dropout = device.number_bytes, 2 * device.number_bytes + 1 if shape.dropout else 0
    # Softmax reads and writes the scores; dropout does so again, with a mask. Not fused, there are passes for the mask,
    # the cast to fp32, the softmax in fp32 and the cast back (backward reads both its output and its gradient).
    per_score = (2 * e, 3 * e) if layout.fused else (2 * e + 1 + 20, 2 * e + 24)
    softmax_forward, softmax_backward = (device.elementwise(batch * s * s * (one + dropout)) for one in per_score)
    forward = scores + values + softmax_forward
    # The gradients' products have the shapes of the forward ones, transposed.
    return forward, 2 * (scores + values) + softmax_backward, forward


def _moved_bytes(shape: Shape, layout: Layout, device: Device, tokens: float) -> float:
    """Return the bytes that a layer's norms, sums, activations and reorderings read and write in a forward pass."""
    t, e = layout.tensor, device.number_bytes
    along = t if layout.sequence else 1
    # Both norms read and write; both sums read two and write one, with a dropout mask. Not fused, bias, dropout and sum
    # are three kernels, and so are bias and activation two.
    whole = 4 * shape.hidden * e + 6 * shape.hidden * e + (2 * shape.hidden if shape.dropout else 0)
    if not layout.fused:
        whole += 8 * shape.hidden * e
    reorder = 2 * (shape.attention_width + 2 * shape.kv_width) * e + (2 * shape.attention_width * e)
    experts = shape.experts_per_token if shape.experts else 1
    activation = (3 if shape.gated else 2) * shape.ffn * e * experts * (1 if layout.fused else 2)
    # fp8: every product's input is read, scaled, and written twice in one byte, for it and for the weight gradient's.
    casts = 0.0
    if layout.precision == "fp8":
        casts = 4 * (
            shape.hidden / along + (shape.attention_width + experts * shape.ffn) / t + shape.hidden * experts / along
        )
    dispatch = 4 * shape.hidden * e * experts if shape.experts else 0
    return tokens * (whole / along + (reorder + activation) / t + dispatch + casts)


def _communication(shape: Shape, layout: Layout, device: Device, tokens: float, attention: float) -> float:
    """Return the seconds of tensor, context and expert communication in a forward pass that nothing hides."""
    node = device.sheet.node_size
    message = tokens * shape.hidden * device.number_bytes
    # An all-reduce after attention and after the block; with sequence parallelism a reduce-scatter and an all-gather.
    seconds = 2 * all_reduce(device, group_of(layout.tensor, 1, node), message)
    seconds *= 1 - layout.tensor_overlap
    if layout.context > 1:
        ring = group_of(layout.context, layout.tensor, node)
        keys = tokens * 2 * shape.kv_width / layout.tensor * device.number_bytes
        # Each rank's keys and values go around once, beside the products with those that are there.
        travelled = gather(device, ring, keys * layout.context)
        seconds += max(0.0, travelled - attention * (layout.context - 1) / layout.context)
    if layout.expert > 1:
        apart = Group(layout.expert, group_of(layout.expert, layout.tensor * layout.context, node).in_node)
        seconds += 2 * all_to_all(device, apart, message * shape.experts_per_token / layout.tensor)
    return seconds


def ends_times(shape: Shape, layout: Layout, device: Device) -> tuple[float, float, float]:
    """Return seconds of the embedding (both passes), and of the logits with their loss, forward and backward."""
    tokens = layout.micro_batch * layout.sequence_length / layout.context
    rows, t = shape.vocabulary / layout.tensor, layout.tensor
    logits = device.matmul(tokens, rows, shape.hidden)
    products = device.matmul(tokens, shape.hidden, rows) + device.matmul(shape.hidden, rows, tokens)
    # Vocabulary-parallel cross entropy in fp32: cast, maximum, exponentials, sum; a fused one moves half of it.
    moved_forward, moved_backward = (28, 14) if shape.dropout else (14, 8)
    message = tokens * shape.hidden * device.number_bytes
    reduce = all_reduce(device, group_of(t, 1, device.sheet.node_size), message)
    embedding = device.elementwise(tokens * shape.hidden * device.number_bytes * 4) + reduce
    forward = logits + device.elementwise(tokens * rows * moved_forward)
    return embedding, forward, products + device.elementwise(tokens * rows * moved_backward) + reduce
