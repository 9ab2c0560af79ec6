"""Wire formats: how fp32 numbers are written for a thin link. N blocks of B numbers become bytes, and numbers again."""

from typing import Protocol

import torch
from torch import Tensor

from isthmus.parallelism.sites.config import Wire

_TINIEST = torch.finfo(torch.bfloat16).tiny


class Codec(Protocol):
    """Writes matrices of blocks, (N, B) fp32, as flat uint8; the same numbers give the same bytes everywhere."""

    block: int
    lossless: bool

    def payload_bytes(self, blocks: int) -> int:
        """Return the exact length of what `encode` returns for N blocks."""

    def encode(self, values_NB: Tensor) -> Tensor:
        """Return the payload; it may share memory with the values."""
        ...

    def decode(self, payload: Tensor, out_NB: Tensor) -> None: ...


def codec_for(wire: Wire, density: float) -> Codec:
    """Return the codec of a wire format; `density` is the share of numbers that topk sends."""
    if wire is Wire.topk:
        return TopK(density)
    codecs: dict[Wire, type[Codec]] = {Wire.fp32: Raw, Wire.bf16: BFloat16, Wire.int8: Int8, Wire.int4: Int4}
    return codecs[wire]()


class Raw:
    """The bits of fp32: 4 N B bytes."""

    block, lossless = 1, True

    def payload_bytes(self, blocks: int) -> int:
        return 4 * blocks

    def encode(self, values_NB: Tensor) -> Tensor:
        return values_NB.reshape(-1).view(torch.uint8)

    def decode(self, payload: Tensor, out_NB: Tensor) -> None:
        out_NB.view(-1).copy_(payload.view(torch.float32))


class BFloat16:
    """Rounded to the nearest bfloat16: 2 N B bytes."""

    block, lossless = 1, False

    def payload_bytes(self, blocks: int) -> int:
        return 2 * blocks

    def encode(self, values_NB: Tensor) -> Tensor:
        return values_NB.reshape(-1).to(torch.bfloat16).view(torch.uint8)

    def decode(self, payload: Tensor, out_NB: Tensor) -> None:
        out_NB.view(-1).copy_(payload.view(torch.bfloat16))


class _Scaled:
    """Whole numbers from -levels to levels, times one bfloat16 scale a block."""

    block, lossless = 128, False
    levels: int

    def _scales(self, values_NB: Tensor) -> Tensor:
        """Return the largest magnitude / levels of each block, rounded up to bfloat16, (N, 1)."""
        largest_N1 = torch.linalg.vector_norm(values_NB, ord=torch.inf, dim=1, keepdim=True)
        bits = (largest_N1 / self.levels).clamp_(min=_TINIEST).view(torch.int32)
        # Rounding down would let the largest number overflow its code.
        return ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)

    def _codes(self, values_NB: Tensor, scales_N1: Tensor) -> Tensor:
        codes_NB = values_NB / scales_N1.float()
        return codes_NB.round_().clamp_(-self.levels, self.levels).to(torch.int8)


class Int8(_Scaled):
    """8 bits a number and 16 a block of 128: N (128 + 2) bytes, the scales first."""

    levels = 127

    def payload_bytes(self, blocks: int) -> int:
        return blocks * (self.block + 2)

    def encode(self, values_NB: Tensor) -> Tensor:
        scales_N1 = self._scales(values_NB)
        codes_NB = self._codes(values_NB, scales_N1)
        return torch.cat([scales_N1.view(-1).view(torch.uint8), codes_NB.view(-1).view(torch.uint8)])

    def decode(self, payload: Tensor, out_NB: Tensor) -> None:
        blocks = out_NB.shape[0]
        scales_N1 = payload[: 2 * blocks].view(torch.bfloat16).view(blocks, 1)
        out_NB.copy_(payload[2 * blocks :].view(torch.int8).view(blocks, self.block))
        out_NB.mul_(scales_N1.float())


class Int4(_Scaled):
    """4 bits a number and 16 a block of 128: N (64 + 2) bytes, the scales first, even numbers in the low half-bytes."""

    levels = 7

    def payload_bytes(self, blocks: int) -> int:
        return blocks * (self.block // 2 + 2)

    def encode(self, values_NB: Tensor) -> Tensor:
        scales_N1 = self._scales(values_NB)
        codes_NB = self._codes(values_NB, scales_N1).view(torch.uint8)
        packed = (codes_NB[:, 0::2] & 0x0F) | (codes_NB[:, 1::2] << 4)
        return torch.cat([scales_N1.view(-1).view(torch.uint8), packed.reshape(-1)])

    def decode(self, payload: Tensor, out_NB: Tensor) -> None:
        blocks = out_NB.shape[0]
        scales_N1 = payload[: 2 * blocks].view(torch.bfloat16).view(blocks, 1)
        packed = payload[2 * blocks :].view(torch.int8).view(blocks, self.block // 2)
        # Shifting left and back again carries the sign of the low half into the upper bits.
        out_NB[:, 0::2] = (packed << 4) >> 4
        out_NB[:, 1::2] = packed >> 4
        out_NB.mul_(scales_N1.float())


class TopK:
    """The k largest of each block of 4096, as 12 bits of place and a bfloat16 (blocks as in arXiv 2508.15706).

    k = max(1, round(4096 density)), rounded up to even so that places pack: two in three bytes, the low byte of the
    first, its high half-byte below the low one of the second, the high byte of the second. N (2 k + 1.5 k) bytes, the
    values first.
    """

    block, lossless = 4096, False

    def __init__(self, density: float) -> None:
        self.kept = min(self.block, 2 * -(-max(1, round(self.block * density)) // 2))

    def payload_bytes(self, blocks: int) -> int:
        return blocks * (2 * self.kept + 3 * self.kept // 2)

    def encode(self, values_NB: Tensor) -> Tensor:
        # A stable sort, so that of equal magnitudes the first ones are kept everywhere.
        order_NB = values_NB.abs().sort(dim=1, descending=True, stable=True).indices
        places_NK = order_NB[:, : self.kept].sort(dim=1).values
        chosen = values_NB.gather(1, places_NK).to(torch.bfloat16).view(-1).view(torch.uint8)
        first, second = places_NK[:, 0::2], places_NK[:, 1::2]
        packed = torch.stack([first & 0xFF, (first >> 8) | ((second & 0x0F) << 4), second >> 4], dim=-1)
        return torch.cat([chosen, packed.to(torch.uint8).view(-1)])

    def decode(self, payload: Tensor, out_NB: Tensor) -> None:
        blocks = out_NB.shape[0]
        values_NK = payload[: 2 * blocks * self.kept].view(torch.bfloat16).view(blocks, self.kept)
        packed = payload[2 * blocks * self.kept :].view(blocks, self.kept // 2, 3).long()
        first = packed[..., 0] | ((packed[..., 1] & 0x0F) << 8)
        second = (packed[..., 1] >> 4) | (packed[..., 2] << 4)
        places_NK = torch.stack([first, second], dim=-1).view(blocks, self.kept)
        out_NB.zero_().scatter_(1, places_NK, values_NK.float())
