"""A digest of numbers and their addresses: how sites, and copies inside a site, prove that they hold the same bits."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from isthmus.parallelism.slices import Slice

_PIECE = 1 << 24  # numbers that are brought to the host at a time


def digest(parts: Iterable[tuple[Slice, Tensor]]) -> bytes:
    """Return 16 bytes that depend on every bit of the tensors and on where in the model they lie."""
    state = hashlib.blake2b(digest_size=16)
    for where, values in parts:
        state.update(repr((where.name, where.global_shape, where.offset, where.start, where.stop)).encode())
        flat = values.detach().reshape(-1)
        for start in range(0, flat.numel(), _PIECE):
            piece = flat[start : start + _PIECE].contiguous().cpu()
            state.update(piece.view(torch.uint8).numpy().data)
    return state.digest()
