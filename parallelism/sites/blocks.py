"""Where slices lie in a matrix of blocks: each begins a new one, so that no block crosses a parameter's border."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


class BlockLayout:
    """Places flat tensors of the given lengths into N blocks of B numbers, one after another, the tails zero."""

    def __init__(self, lengths: Sequence[int], block: int) -> None:
        self.block = block
        self._ranges: list[tuple[int, int]] = []
        self.blocks = 0
        for length in lengths:
            first = self.blocks * block
            self._ranges.append((first, first + length))
            self.blocks += -(-length // block)

    def buffer(self, device: torch.device) -> Tensor:
        """Return a matrix of zeros, (N, B) fp32."""
        return torch.zeros(self.blocks, self.block, device=device)

    def pack(self, tensors: Sequence[Tensor], out_NB: Tensor) -> None:
        """Copy flat tensors into their blocks."""
        torch._foreach_copy_(self._views(out_NB), list(tensors))
        # What an exchange left in the tails must not be sent again.
        flat = out_NB.view(-1)
        for _, last in self._ranges:
            flat[last : -(-last // self.block) * self.block].zero_()

    def unpack(self, values_NB: Tensor, tensors: Sequence[Tensor]) -> None:
        """Copy blocks back into flat tensors."""
        torch._foreach_copy_(list(tensors), self._views(values_NB))

    def split(self, parts: int) -> list[tuple[int, int]]:
        """Cut the N blocks into contiguous ranges, as equal as can be, in order."""
        borders = [self.blocks * part // parts for part in range(parts + 1)]
        return list(itertools.pairwise(borders))

    def _views(self, matrix_NB: Tensor) -> list[Tensor]:
        flat = matrix_NB.view(-1)
        return [flat[first:last] for first, last in self._ranges]
