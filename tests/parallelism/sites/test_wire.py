"""Wire formats: what comes back, how many bytes it takes, and that nothing is lost for good."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.parallelism.sites.blocks import BlockLayout
from isthmus.parallelism.sites.config import Wire
from isthmus.parallelism.sites.feedback import ErrorFeedback
from isthmus.parallelism.sites.wire import Codec, TopK, codec_for

WIRES = list(Wire)
CPU = torch.device("cpu")


def there_and_back(codec: Codec, values_NB: torch.Tensor) -> torch.Tensor:
    payload = codec.encode(values_NB)
    assert payload.dtype is torch.uint8
    assert payload.numel() == codec.payload_bytes(values_NB.shape[0])
    out_NB = torch.full_like(values_NB, torch.nan)
    codec.decode(payload, out_NB)
    return out_NB


def blocks_of(codec: Codec, seed: int, blocks: int, magnitude: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values_NB = torch.randn(blocks, codec.block, generator=generator) * magnitude
    values_NB[generator.initial_seed() % blocks] = 0.0
    return values_NB


@settings(deadline=None, max_examples=40)
@given(
    wire=st.sampled_from(WIRES),
    seed=st.integers(0, 2**31),
    blocks=st.integers(1, 5),
    exponent=st.integers(-30, 30),
)
def test_the_error_is_bounded(wire: Wire, seed: int, blocks: int, exponent: int) -> None:
    codec = codec_for(wire, 0.02)
    values_NB = blocks_of(codec, seed, blocks, 10.0**exponent)
    back_NB = there_and_back(codec, values_NB)
    largest_N1 = values_NB.abs().amax(dim=1, keepdim=True)
    if wire is Wire.fp32:
        assert torch.equal(back_NB, values_NB)
    elif wire is Wire.bf16:
        assert ((back_NB - values_NB).abs() <= values_NB.abs() * 2**-8 + 1e-38).all()
    elif wire is Wire.topk:
        sent = back_NB != 0
        assert sent.sum(dim=1).max() <= 82
        assert ((back_NB - values_NB).abs()[sent] <= values_NB.abs()[sent] * 2**-8 + 1e-38).all()
    else:
        levels = {Wire.int8: 127, Wire.int4: 7}[wire]
        # Half a level; the scale is rounded up to bfloat16, by 2^-7 at most.
        assert ((back_NB - values_NB).abs() <= largest_N1 / levels * 0.5 * (1 + 2**-7) + 1e-38).all()


@pytest.mark.parametrize("wire", WIRES)
def test_what_was_decoded_is_encoded_without_loss(wire: Wire) -> None:
    codec = codec_for(wire, 0.02)
    once_NB = there_and_back(codec, blocks_of(codec, 1, 3, 1.0))
    torch.testing.assert_close(there_and_back(codec, once_NB), once_NB, rtol=2**-7, atol=0)


@pytest.mark.parametrize("wire", WIRES)
def test_bytes_are_as_documented(wire: Wire) -> None:
    codec = codec_for(wire, 0.02)
    bits = 8 * codec.payload_bytes(4096 // codec.block) / 4096
    assert bits == {Wire.fp32: 32, Wire.bf16: 16, Wire.int8: 8.125, Wire.int4: 4.125, Wire.topk: 82 * 28 / 4096}[wire]


def test_topk_keeps_the_largest_and_the_first_of_equals() -> None:
    codec = TopK(4 / 4096)
    values_NB = torch.zeros(1, 4096)
    values_NB[0, [7, 4095, 0, 100]] = torch.tensor([-3.0, 2.0, 1.0, 1.0])
    values_NB[0, 200:] += (values_NB[0, 200:] == 0) * 0.5
    back_NB = there_and_back(codec, values_NB)
    assert back_NB.nonzero()[:, 1].tolist() == [0, 7, 100, 4095]
    ties_NB = there_and_back(codec, torch.ones(1, 4096))
    assert ties_NB.nonzero()[:, 1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("density", [1e-6, 0.01, 0.37, 1.0])
def test_any_density(density: float) -> None:
    codec = TopK(density)
    values_NB = blocks_of(codec, 3, 2, 1.0)
    kept = (there_and_back(codec, values_NB) != 0).sum(dim=1).max().item()
    assert kept == min(codec.kept, 4096)
    assert abs(codec.kept - 4096 * density) <= 2


@pytest.mark.parametrize("wire", [wire for wire in WIRES if wire is not Wire.fp32])
def test_error_feedback_loses_nothing_in_the_long_run(wire: Wire) -> None:
    """What was received in all, plus the error still kept, is what was sent in all."""
    codec = codec_for(wire, 0.02)
    feedback = ErrorFeedback(codec, 2, CPU, decay=1.0)
    sent_NB, received_NB = torch.zeros(2, codec.block).double(), torch.zeros(2, codec.block).double()
    for number in range(20):
        values_NB = blocks_of(codec, number, 2, 1.0)
        sent_NB += values_NB
        decoded_NB = torch.empty_like(values_NB)
        feedback.encode(values_NB, decoded_NB)
        feedback.commit()
        received_NB += decoded_NB
    torch.testing.assert_close(received_NB + feedback.residual_NB, sent_NB, rtol=1e-5, atol=1e-4)


def test_a_round_that_does_not_count_leaves_no_trace() -> None:
    codec = codec_for(Wire.int4, 0.0)
    feedback = ErrorFeedback(codec, 1, CPU, decay=0.9)
    values_NB, decoded_NB = blocks_of(codec, 5, 1, 1.0) + 1.0, torch.empty(1, 128)
    feedback.encode(values_NB.clone(), decoded_NB)
    feedback.commit()
    before_NB = feedback.residual_NB.clone()
    assert before_NB.any()
    first = feedback.encode(values_NB.clone(), decoded_NB)
    feedback.revert()
    assert torch.equal(feedback.residual_NB, before_NB)
    assert torch.equal(feedback.encode(values_NB.clone(), decoded_NB), first)
    restored = ErrorFeedback(codec, 1, CPU, decay=0.9)
    restored.load_state_dict(feedback.state_dict())
    assert torch.equal(restored.encode(values_NB.clone(), decoded_NB), first)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=6), block=st.sampled_from([1, 128]))
def test_no_block_crosses_a_border(lengths: list[int], block: int) -> None:
    layout = BlockLayout(lengths, block)
    tensors = [torch.full((length,), float(number + 1)) for number, length in enumerate(lengths)]
    values_NB = layout.buffer(CPU).fill_(9.0)
    layout.pack(tensors, values_NB)
    for row in values_NB:
        assert len(set(row[row != 0].tolist())) <= 1
    assert (values_NB != 0).sum() == sum(lengths)
    back = [torch.empty(length) for length in lengths]
    layout.unpack(values_NB, back)
    assert all(torch.equal(a, b) for a, b in zip(back, tensors, strict=True))
    for parts in (1, 2, 3, 5):
        ranges = layout.split(parts)
        assert [first for first, _ in ranges[1:]] == [last for _, last in ranges[:-1]]
        assert (ranges[0][0], ranges[-1][1]) == (0, layout.blocks)
        sizes = [last - first for first, last in ranges]
        assert max(sizes) - min(sizes) <= 1
