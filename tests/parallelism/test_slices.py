"""Addresses of numbers: names and offsets that do not depend on the layout."""

import itertools

import pytest

from isthmus.parallelism.slices import Piece, global_name, partition_dim, pieces_of, slices_of

_LAYER = "decoder.layers.5."


def _name(local: str, *, layers: list[int] | None = None, first_expert: int = 0, tied: bool = False) -> str:
    return global_name(local, layer_numbers=layers or [0, 1], first_expert=first_expert, tied_embeddings=tied)


def _global_elements(piece: Piece) -> list[tuple[int, ...]]:
    ranges = [range(first, first + size) for first, size in zip(piece.offset, piece.shape, strict=True)]
    return list(itertools.product(*ranges))


@pytest.mark.parametrize("tensor_size", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "whole", "split", "tensors"),
    [
        ("self_attention.linear_qkv.weight", (24, 6), 0, {"self_attention.linear_qkv.weight": (24, 6)}),
        ("self_attention.linear_proj.weight", (6, 8), 1, {"self_attention.linear_proj.weight": (6, 8)}),
        (
            "mlp.linear_fc1.weight",
            (16, 6),
            0,
            {"mlp.linear_fc1.gate.weight": (8, 6), "mlp.linear_fc1.up.weight": (8, 6)},
        ),
        ("mlp.linear_fc2.weight", (6, 8), 1, {"mlp.linear_fc2.weight": (6, 8)}),
        ("input_layernorm.weight", (6,), None, {"input_layernorm.weight": (6,)}),
        ("mlp.router.weight", (4, 6), None, {"mlp.router.weight": (4, 6)}),
    ],
)
def test_pieces_of_all_tensor_ranks_tile_each_global_tensor_once(
    name: str, whole: tuple[int, ...], split: int | None, tensors: dict[str, tuple[int, ...]], tensor_size: int
) -> None:
    local = tuple(size // tensor_size if dim == split else size for dim, size in enumerate(whole))
    assert partition_dim(_LAYER + name) == split
    covered: dict[str, list[tuple[int, ...]]] = {_LAYER + tensor: [] for tensor in tensors}
    for rank in range(tensor_size):
        pieces = pieces_of(_LAYER + name, local, tensor_rank=rank, tensor_size=tensor_size)
        # The pieces lie one after the other in the flat local parameter.
        assert [piece.start for piece in pieces] == [index * pieces[0].numel for index in range(len(pieces))]
        count = 1
        for size in local:
            count *= size
        assert sum(piece.numel for piece in pieces) == count
        for piece in pieces:
            assert piece.global_shape == tensors[piece.name.removeprefix(_LAYER)]
            covered[piece.name] += _global_elements(piece)
    copies = 1 if split is not None else tensor_size  # a replicated tensor is held whole by every rank
    for tensor, shape in tensors.items():
        everything = sorted(list(itertools.product(*map(range, shape))) * copies)
        assert sorted(covered[_LAYER + tensor]) == everything


def test_gate_comes_first_on_every_tensor_rank() -> None:
    gate, up = pieces_of(_LAYER + "mlp.linear_fc1.weight", (4, 3), tensor_rank=1, tensor_size=2)
    assert (gate.name, gate.offset, gate.start) == (_LAYER + "mlp.linear_fc1.gate.weight", (2, 0), 0)
    assert (up.name, up.offset, up.start) == (_LAYER + "mlp.linear_fc1.up.weight", (2, 0), 6)


@pytest.mark.parametrize("name", ["embedding.word_embeddings.weight", "output_layer.weight"])
def test_vocabulary_is_split_by_rows(name: str) -> None:
    (piece,) = pieces_of(name, (32, 6), tensor_rank=3, tensor_size=4)
    assert (piece.name, piece.global_shape, piece.offset) == (name, (128, 6), (96, 0))


def test_layer_numbers_become_global_with_virtual_stages() -> None:
    # 8 layers, 2 stages x 2 chunks: the second chunk of the first stage holds layers 4 and 5.
    assert _name("module.decoder.layers.1.mlp.linear_fc2.weight", layers=[4, 5]) == (
        "decoder.layers.5.mlp.linear_fc2.weight"
    )
    assert _name("module.module.decoder.final_layernorm.weight", layers=[4, 5]) == "decoder.final_layernorm.weight"


def test_expert_numbers_become_global_and_do_not_depend_on_the_kind_of_experts() -> None:
    expected = "decoder.layers.1.mlp.experts.local_experts.7.linear_fc1.weight"
    sequential = _name("decoder.layers.1.mlp.experts.local_experts.3.linear_fc1.weight", first_expert=4)
    grouped = _name("decoder.layers.1.mlp.experts.linear_fc1.weight3", first_expert=4)
    assert sequential == grouped == expected
    assert partition_dim("decoder.layers.1.mlp.experts.linear_fc1.weight3") == 0
    assert partition_dim("decoder.layers.1.mlp.experts.linear_fc2.weight12") == 1
    assert _name("decoder.layers.0.mlp.experts.linear_fc2.weight12", first_expert=20) == (
        "decoder.layers.0.mlp.experts.local_experts.32.linear_fc2.weight"
    )


def test_tied_output_layer_has_the_embeddings_name() -> None:
    assert _name("module.output_layer.weight", tied=True) == "embedding.word_embeddings.weight"
    assert _name("module.output_layer.weight", tied=False) == "output_layer.weight"


@pytest.mark.parametrize(
    ("fused", "plain"),
    [
        ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
        ("self_attention.linear_qkv.weight", "self_attention.linear_qkv.weight"),
        ("mlp.linear_fc1.weight", "mlp.linear_fc1.weight"),
    ],
)
def test_norms_that_transformer_engine_fuses_keep_their_names(fused: str, plain: str) -> None:
    assert _name(f"decoder.layers.0.{fused}", layers=[5]) == _LAYER + plain


def test_slices_cover_any_range_exactly_and_are_cut_at_borders() -> None:
    pieces = pieces_of(_LAYER + "mlp.linear_fc1.weight", (4, 3), tensor_rank=1, tensor_size=2)  # gate 0..6, up 6..12
    for start, stop in itertools.combinations(range(13), 2):
        found = list(slices_of(pieces, start, stop))
        covered = [index for _, first, last in found for index in range(first, last)]
        assert covered == list(range(start, stop))
        for where, first, last in found:
            owner = pieces[0] if last <= 6 else pieces[1]
            assert first >= owner.start, "a slice lies in one piece"
            assert (where.name, where.offset, where.shape) == (owner.name, owner.offset, owner.shape)
            assert where.global_shape == owner.global_shape
            assert (where.start, where.stop, where.numel) == (first - owner.start, last - owner.start, last - first)


def test_empty_range_has_no_slices() -> None:
    assert list(slices_of(pieces_of("output_layer.weight", (4, 3), tensor_rank=0, tensor_size=1), 5, 5)) == []
