"""The hand-written layers against plain autograd formulas."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from isthmus.parallelism import cpu
from isthmus.parallelism.layers import loss as loss_module
from isthmus.parallelism.layers.activation import SwiGLU
from isthmus.parallelism.layers.attention import RotaryAttention
from isthmus.parallelism.layers.loss import linear_cross_entropy
from isthmus.parallelism.layers.norm import RMSNorm


@pytest.fixture(autouse=True)
def _stand_ins() -> None:
    cpu.install()  # RMSNorm asks for the current CUDA device
    torch.manual_seed(0)


def _close(actual: Tensor, expected: Tensor) -> None:
    """Equal within 1e-5 of the largest entry: fp32 has 6e-8, and these sums are a few hundred terms long."""
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max().item()
    assert difference <= 1e-5 * expected.abs().max().item(), difference


def _grads(output: Tensor, cotangent: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output * cotangent).sum(), inputs)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_rms_norm(sequence_parallel: bool) -> None:
    config = SimpleNamespace(params_dtype=torch.float32, sequence_parallel=sequence_parallel)
    norm = RMSNorm(config, 16, eps=1e-2).to("cpu")  # large enough that forgetting it would show
    assert norm.weight.sequence_parallel is sequence_parallel  # type: ignore[attr-defined]
    assert torch.equal(norm.weight, torch.ones(16))
    with torch.no_grad():
        norm.weight.normal_()
    x = torch.randn(5, 3, 16, requires_grad=True)
    cotangent = torch.randn(5, 3, 16)
    expected = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2) * norm.weight
    actual = norm(x)
    _close(actual, expected)
    for ours, plain in zip(
        _grads(actual, cotangent, x, norm.weight), _grads(expected, cotangent, x, norm.weight), strict=True
    ):
        _close(ours, plain)


def test_swiglu() -> None:
    x = torch.randn(5, 3, 24, requires_grad=True)
    cotangent = torch.randn(5, 3, 12)
    gate, up = x[..., :12], x[..., 12:]
    expected = gate * torch.sigmoid(gate) * up
    before = x.detach().clone()
    actual = SwiGLU(None)(x)
    _close(actual, expected)
    _close(_grads(actual, cotangent, x)[0], _grads(expected, cotangent, x)[0])
    assert torch.equal(x, before), "the input is saved for the backward pass: it must not change"


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, base: float) -> Tensor:
    """Rotate and attend one head and one sequence at a time, by the definitions."""
    sequence, batch, heads, dim = query.shape
    shared = heads // key.shape[2]
    frequencies = torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)])
    angles = torch.arange(sequence)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()

    def rotate(x_SD: Tensor) -> Tensor:
        first, second = x_SD[:, : dim // 2], x_SD[:, dim // 2 :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)

    future = torch.ones(sequence, sequence, dtype=torch.bool).triu(1)
    rows = []
    for b in range(batch):
        outputs = []
        for n in range(heads):
            scores = rotate(query[:, b, n]) @ rotate(key[:, b, n // shared]).t() / dim**0.5
            outputs.append(torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1) @ value[:, b, n // shared])
        rows.append(torch.cat(outputs, dim=1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("groups", [4, 2, 1])  # key/value heads of 4 query heads: all, shared, one
def test_rotary_attention(groups: int) -> None:
    layer = RotaryAttention(SimpleNamespace(kv_channels=8, rotary_base=100.0), 1, None, "self")
    for sequence in (7, 5):  # the cached angles must follow the length
        query = torch.randn(sequence, 2, 4, 8, requires_grad=True)
        key = torch.randn(sequence, 2, groups, 8, requires_grad=True)
        value = torch.randn(sequence, 2, groups, 8, requires_grad=True)
        cotangent = torch.randn(sequence, 2, 32)
        actual, expected = layer(query, key, value), _plain_attention(query, key, value, 100.0)
        _close(actual, expected)
        ours = _grads(actual, cotangent, query, key, value)
        for gradient, plain in zip(ours, _grads(expected, cotangent, query, key, value), strict=True):
            _close(gradient, plain)


@pytest.mark.parametrize("reset", [False, True])
def test_masked_documents_attend_as_if_each_were_alone(reset: bool) -> None:
    config = SimpleNamespace(kv_channels=8, rotary_base=100.0, mask_documents=True, reset_positions=reset)
    layer, plain = RotaryAttention(config, 1, None, "self"), RotaryAttention(config, 1, None, "self")
    lengths = [(3, 4, 2), (1, 8)]  # of two samples of 9 tokens
    documents_BS = torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths])
    heads = (4, 2, 2)
    query, key, value = (torch.randn(9, 2, count, 8, requires_grad=True) for count in heads)
    cotangent = torch.randn(9, 2, 32)
    actual = layer(query, key, value, documents_BS)
    columns = []
    for sample, row in enumerate(lengths):
        parts = [tensor[:, sample : sample + 1].split(row) for tensor in (query, key, value)]
        columns.append(torch.cat([plain(*document) for document in zip(*parts, strict=True)]))
    expected = torch.cat(columns, 1)
    _close(actual, expected)
    ours = _grads(actual, cotangent, query, key, value)
    for gradient, alone in zip(ours, _grads(expected, cotangent, query, key, value), strict=True):
        _close(gradient, alone)
    assert (actual - plain(query, key, value)).abs().max() > 0.1  # one document of 9 tokens is something else


def test_reset_positions_without_a_mask_are_each_tokens_place_in_its_document() -> None:
    config = SimpleNamespace(kv_channels=8, rotary_base=100.0, mask_documents=False, reset_positions=True)
    layer = RotaryAttention(config, 1, None, "self")
    query, key, value = (torch.randn(6, 1, 1, 8, requires_grad=True) for _ in range(3))
    places = [0, 1, 2, 0, 1, 0]
    actual = layer(query, key, value, torch.tensor([[0, 0, 0, 1, 1, 2]]))
    angles = torch.outer(torch.tensor(places).float(), 100.0 ** -(torch.arange(0, 8, 2) / 8))

    def rotated(x: Tensor) -> Tensor:
        first, second = x[:, 0, 0].chunk(2, -1)
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
        )

    scores = (rotated(query) @ rotated(key).T / 8**0.5).masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf)
    expected = (scores.softmax(-1) @ value[:, 0, 0])[:, None]
    _close(actual, expected)
    cotangent = torch.randn(6, 1, 8)
    for gradient, plain in zip(
        _grads(actual, cotangent, query, key, value), _grads(expected, cotangent, query, key, value), strict=True
    ):
        _close(gradient, plain)


def test_rotary_attention_keeps_angles_in_fp32_for_bf16_activations() -> None:
    layer = RotaryAttention(SimpleNamespace(kv_channels=8, rotary_base=10_000.0), 1, None, "self")
    cos, _ = layer._rotary_angles(300, torch.zeros(1, dtype=torch.bfloat16))
    assert cos.dtype is torch.bfloat16
    # bf16 cannot tell position 257 from 256: angles formed in it would give the same row twice.
    expected = torch.tensor(257.0).cos().to(torch.bfloat16)
    assert cos[257, 0] == expected != cos[256, 0]


def _loss_case(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(*mask.shape, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    weight.main_grad = torch.zeros(20, 8)  # type: ignore[attr-defined]
    return hidden, weight, torch.randint(20, mask.shape)


# Some tokens masked; weighted tokens; none counted at all
@pytest.mark.parametrize("kind", ["some", "weighted", "none"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk_elements", [1 << 21, 20 * 4, 1])  # one chunk; 4 rows (14 = 4 + 4 + 4 + 2); one row
def test_linear_cross_entropy(kind: str, tied: bool, chunk_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_CHUNK_ELEMENTS", chunk_elements)
    mask = {"some": (torch.rand(7, 2) > 0.4).float(), "weighted": torch.rand(7, 2), "none": torch.zeros(7, 2)}[kind]
    hidden, weight, labels = _loss_case(mask)
    expected = functional.cross_entropy((hidden @ weight.t()).flatten(0, 1), labels.flatten(), reduction="none").view(
        7, 2
    )
    plain_hidden, plain_weight = _grads(expected, mask, hidden, weight)

    losses = linear_cross_entropy(hidden, weight, labels, mask, tied)
    assert losses.dtype is torch.float32
    _close(losses, expected)
    (losses * mask).sum().backward()
    assert hidden.grad is not None
    _close(hidden.grad, plain_hidden)
    _close(weight.main_grad, plain_weight)  # type: ignore[attr-defined]
    # A parameter's hook runs on a gradient; a tied one gets its own from the embedding's look-up.
    assert (weight.grad is None) is tied
    assert getattr(weight, "grad_added_to_main_grad", False) is (not tied)


def test_linear_cross_entropy_adds_up_microbatches() -> None:
    mask = torch.ones(3, 2)
    hidden, weight, labels = _loss_case(mask)
    linear_cross_entropy(hidden, weight, labels, mask, False)
    once = weight.main_grad.clone()  # type: ignore[attr-defined]
    assert once.abs().max() > 0
    linear_cross_entropy(hidden, weight, labels, mask, False)
    _close(weight.main_grad, 2 * once)  # type: ignore[attr-defined]


def test_linear_cross_entropy_in_evaluation_leaves_the_gradient_alone() -> None:
    hidden, weight, labels = _loss_case(torch.ones(3, 2))
    with torch.no_grad():
        linear_cross_entropy(hidden.detach(), weight, labels, torch.ones(3, 2), False)
    assert not weight.main_grad.any()  # type: ignore[attr-defined]
