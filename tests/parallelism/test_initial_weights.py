"""Initial weights depend on seed, name and position, never on the layout."""

import pytest
import torch
from torch import Tensor

from isthmus.parallelism import initial
from isthmus.parallelism.slices import partition_dim, pieces_of

_STD = 0.02
_LAYERS = 8


def _local(name: str, whole: tuple[int, ...], rank: int, size: int, seed: int) -> Tensor:
    dim = partition_dim(name)
    shape = tuple(length // size if index == dim else length for index, length in enumerate(whole))
    parameter = torch.nn.Parameter(torch.full(shape, float("nan")))
    pieces = pieces_of(name, shape, tensor_rank=rank, tensor_size=size)
    initial.fill(parameter, pieces, seed=seed, init_std=_STD, num_layers=_LAYERS)
    return parameter.detach()


def _whole(name: str, whole: tuple[int, ...], size: int = 1, seed: int = 0) -> Tensor:
    """Fill the parts of all tensor ranks and put them together as the matrix that one rank alone would hold."""
    parts = [_local(name, whole, rank, size, seed) for rank in range(size)]
    if name.endswith("linear_fc1.weight"):  # gate and up side by side on every rank
        halves = [part.chunk(2) for part in parts]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
    dim = partition_dim(name)
    return parts[0] if dim is None else torch.cat(parts, dim)


@pytest.mark.parametrize("block_elements", [initial._BLOCK_ELEMENTS, 50, 7])  # one block; several rows; less than a row
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("decoder.layers.0.self_attention.linear_qkv.weight", (36, 10)),
        ("decoder.layers.0.self_attention.linear_proj.weight", (10, 12)),
        ("decoder.layers.0.mlp.linear_fc1.weight", (40, 10)),
        ("decoder.layers.0.mlp.linear_fc2.weight", (10, 20)),
        ("embedding.word_embeddings.weight", (128, 10)),
    ],
)
def test_any_split_gives_the_same_tensor_bit_by_bit(
    name: str, shape: tuple[int, int], size: int, block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(initial, "_BLOCK_ELEMENTS", block_elements)
    alone = _whole(name, shape)
    assert alone.isfinite().all()
    assert alone.unique().numel() == alone.numel(), "rows or blocks repeat"
    assert torch.equal(_whole(name, shape, size), alone)


@pytest.mark.parametrize("block_elements", [initial._BLOCK_ELEMENTS, 1_000])
@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("decoder.layers.0.self_attention.linear_qkv.weight", _STD),
        ("decoder.layers.0.mlp.linear_fc1.weight", _STD),
        ("output_layer.weight", _STD),
        # Radford et al. 2019, section 2.3: 1 / sqrt(N) with N residual layers, of which there are two per layer
        ("decoder.layers.0.self_attention.linear_proj.weight", _STD / (2 * _LAYERS) ** 0.5),
        ("decoder.layers.0.mlp.linear_fc2.weight", _STD / (2 * _LAYERS) ** 0.5),
    ],
)
def test_standard_deviation(name: str, std: float, block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial, "_BLOCK_ELEMENTS", block_elements)
    weights = _whole(name, (256, 256))
    # 65,536 draws: the estimate's own standard error is 1 / sqrt(2 x 65,536) = 0.3%
    assert weights.std().item() == pytest.approx(std, rel=0.02)
    assert abs(weights.mean().item()) < 4 * std / 256


def test_norms_are_ones() -> None:
    assert torch.equal(_whole("decoder.layers.0.input_layernorm.weight", (64,)), torch.ones(64))


def test_names_seeds_and_halves_differ() -> None:
    first = _whole("decoder.layers.0.self_attention.linear_qkv.weight", (32, 32))
    assert not torch.equal(first, _whole("decoder.layers.1.self_attention.linear_qkv.weight", (32, 32)))
    assert not torch.equal(first, _whole("decoder.layers.0.self_attention.linear_qkv.weight", (32, 32), seed=1))
    gate, up = _whole("decoder.layers.0.mlp.linear_fc1.weight", (32, 32)).chunk(2)
    assert not torch.equal(gate, up)
