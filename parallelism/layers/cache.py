"""Keys and values of texts that are being continued, so that a new token costs one position and not all of them.

B slots, G key/value heads, N query heads, D head width, T positions. What a text's numbers are never depends on the
other texts: it is read in alone, then takes one row of passes that always have all slots, and attends by itself or
beside texts of about its length, row by row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_BUCKET = 128  # lengths are rounded up to a multiple of it, to attend for several texts at once


@dataclass
class Step:
    """What the pass under way does: read a text into `slot`, or, where that is None, add a token to each active slot.

    Args:
        positions_B: of the token that each slot adds.
        mask_BT: the positions that each slot's token sees.
        runs: (first slot, one past the last, positions): neighbours that attend over as many positions.
    """

    slot: int | None
    positions_B: Tensor | None = None
    mask_BT: Tensor | None = None
    runs: tuple[tuple[int, int, int], ...] = ()


class KeyValueCache:
    """One layer's keys and values; layers share what `step` holds."""

    def __init__(self, slots: int, groups: int, length: int, head_dim: int, like: Tensor) -> None:
        self.length = length
        self.step = Step(None)
        self._keys_BGTD = torch.zeros(slots, groups, length, head_dim, dtype=like.dtype, device=like.device)
        self._values_BGTD = torch.zeros_like(self._keys_BGTD)
        self._rows_B = torch.arange(slots, device=like.device)

    def attend(self, query_BNSD: Tensor, key_BGSD: Tensor, value_BGSD: Tensor) -> Tensor:
        """Keep keys and values, which are rotated already; return the attended values, (B, N, S, D)."""
        if self.step.slot is not None:
            return self._read(self.step.slot, query_BNSD, key_BGSD, value_BGSD)
        positions, mask, batch = self.step.positions_B, self.step.mask_BT, query_BNSD.shape[0]
        assert positions is not None
        assert mask is not None
        self._keys_BGTD[self._rows_B, :, positions] = key_BGSD[:, :, 0]
        self._values_BGTD[self._rows_B, :, positions] = value_BGSD[:, :, 0]
        # With one new position, the queries that share a key head can stand where positions do: nothing is repeated.
        groups = key_BGSD.shape[1]
        query_BGQD = query_BNSD.reshape(batch, groups, -1, query_BNSD.shape[-1])
        context_BGQD = torch.zeros_like(query_BGQD)
        for first, last, positions_seen in self.step.runs:
            context_BGQD[first:last] = functional.scaled_dot_product_attention(
                query_BGQD[first:last],
                self._keys_BGTD[first:last, :, :positions_seen],
                self._values_BGTD[first:last, :, :positions_seen],
                attn_mask=mask[first:last, None, None, :positions_seen],
            )
        return context_BGQD.reshape(query_BNSD.shape)

    def _read(self, slot: int, query_1NSD: Tensor, key_1GSD: Tensor, value_1GSD: Tensor) -> Tensor:
        positions = key_1GSD.shape[2]
        self._keys_BGTD[slot, :, :positions] = key_1GSD[0]
        self._values_BGTD[slot, :, :positions] = value_1GSD[0]
        grouped = query_1NSD.shape[1] != key_1GSD.shape[1]
        return functional.scaled_dot_product_attention(
            query_1NSD, key_1GSD, value_1GSD, is_causal=True, enable_gqa=grouped
        )


def adding(lengths: list[int], active: list[bool], length: int, device: torch.device) -> Step:
    """Return the step that adds a token to the active slots, which hold `lengths` of them."""
    positions_B = torch.tensor([held if busy else 0 for held, busy in zip(lengths, active, strict=True)], device=device)
    mask_BT = torch.arange(length, device=device) <= positions_B[:, None]
    runs: list[tuple[int, int, int]] = []
    for slot, (held, busy) in enumerate(zip(lengths, active, strict=True)):
        seen = min(length, -(-(held + 1) // _BUCKET) * _BUCKET)
        if not busy:
            continue
        if runs and runs[-1][1:] == (slot, seen):
            runs[-1] = (runs[-1][0], slot + 1, seen)
        else:
            runs.append((slot, slot + 1, seen))
    return Step(None, positions_B, mask_BT, tuple(runs))
