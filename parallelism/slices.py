"""How every number of the model is addressed, whatever the topology: (global parameter name, shape, offset, range).

Names are Megatron's, with global layer and expert numbers, and the same with and without transformer-engine. A SwiGLU
first layer holds gate and up side by side on every tensor rank, so its global tensors are two: `...gate.weight` and
`...up.weight`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_COLUMN_PARALLEL = ("word_embeddings.weight", "output_layer.weight", "linear_qkv.weight", "linear_fc1.weight")
_ROW_PARALLEL = ("linear_proj.weight", "linear_fc2.weight")
# transformer-engine fuses a norm into the linear that follows it.
_CANONICAL = (
    ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
)


@dataclass(frozen=True)
class Piece:
    """The part of one global tensor that a rank holds, somewhere in one of its flat local parameters.

    Attributes:
        name: global parameter name.
        global_shape: shape of the whole tensor.
        offset: where this piece begins in the whole tensor, one number per dim.
        shape: shape of this piece.
        start: where this piece begins in the flat local parameter.
    """

    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Slice:
    """A flat range of a piece: what one rank owns of one global tensor."""

    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


def partition_dim(name: str) -> int | None:
    """Return the dim of a parameter that tensor parallelism splits, or None where every tensor rank holds a copy."""
    canonical = re.sub(r"(linear_fc[12]\.weight)\d+$", r"\1", name)
    if canonical.endswith(_COLUMN_PARALLEL):
        return 0
    return 1 if canonical.endswith(_ROW_PARALLEL) else None


def global_name(local_name: str, *, layer_numbers: list[int], first_expert: int, tied_embeddings: bool) -> str:
    """Translate a chunk's parameter name: local layer and expert numbers become global ones.

    `layer_numbers` holds the global number (from 0) of each of the chunk's layers.
    """
    name = re.sub(r"^(module\.)+", "", local_name)
    name = re.sub(r"decoder\.layers\.(\d+)\.", lambda match: f"decoder.layers.{layer_numbers[int(match[1])]}.", name)
    name = re.sub(r"local_experts\.(\d+)\.", lambda match: f"local_experts.{first_expert + int(match[1])}.", name)
    name = re.sub(  # transformer-engine's grouped experts: linear_fc1.weight3
        r"experts\.(linear_fc[12])\.weight(\d+)$",
        lambda match: f"experts.local_experts.{first_expert + int(match[2])}.{match[1]}.weight",
        name,
    )
    for fused, plain in _CANONICAL:
        name = name.replace(fused, plain)
    # The last stage's output layer is a copy of the tied embedding: one tensor, one name.
    return "embedding.word_embeddings.weight" if tied_embeddings and name == "output_layer.weight" else name


def pieces_of(name: str, shape: tuple[int, ...], *, tensor_rank: int, tensor_size: int) -> list[Piece]:
    """Split a local parameter of global name `name` and local `shape` into pieces of global tensors."""
    dim = partition_dim(name)
    if name.endswith("linear_fc1.weight"):
        rows, columns = shape[0] // 2, shape[1]
        base = name.removesuffix("weight")
        return [
            Piece(
                name=f"{base}{half}.weight",
                global_shape=(rows * tensor_size, columns),
                offset=(rows * tensor_rank, 0),
                shape=(rows, columns),
                start=index * rows * columns,
            )
            for index, half in enumerate(("gate", "up"))
        ]
    global_shape, offset = list(shape), [0] * len(shape)
    if dim is not None:
        global_shape[dim] *= tensor_size
        offset[dim] = shape[dim] * tensor_rank
    return [Piece(name=name, global_shape=tuple(global_shape), offset=tuple(offset), shape=shape, start=0)]


def slices_of(pieces: list[Piece], start: int, stop: int) -> Iterator[tuple[Slice, int, int]]:
    """Cut a flat range of a local parameter at the borders of its pieces.

    Yields (slice, first, last): the slice covers `[first, last)` of the flat local parameter.
    """
    for piece in pieces:
        first, last = max(start, piece.start), min(stop, piece.start + piece.numel)
        if first < last:
            where = Slice(
                name=piece.name,
                global_shape=piece.global_shape,
                offset=piece.offset,
                shape=piece.shape,
                start=first - piece.start,
                stop=last - piece.start,
            )
            yield where, first, last
