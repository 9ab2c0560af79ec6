"""Causal self-attention with rotary positions, on torch's scaled_dot_product_attention."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.parallelism.layers.cache import KeyValueCache


class RotaryAttention(torch.nn.Module):
    """Megatron's `core_attention`: rotates queries and keys (RoFormer, arXiv 2104.09864), then attends causally.

    The rotation happens here rather than in Megatron because both need the heads in another memory order: one pass
    rotates and transposes.
    """

    def __init__(self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, **_: Any) -> None:
        super().__init__()
        self.head_dim = config.kv_channels
        self.rotary_base = config.rotary_base
        self.mask_documents = getattr(config, "mask_documents", False)
        self.reset_positions = getattr(config, "reset_positions", False)
        self.cache: KeyValueCache | None = None  # while texts are continued: keys and values of earlier tokens
        self._angles: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        query_SBND: Tensor,
        key_SBGD: Tensor,
        value_SBGD: Tensor,
        documents_BS: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        """Return the attended values, (S, B, N * D).

        `documents_BS` numbers each token's document; without it a sample is one document.
        """
        sequence, batch = query_SBND.shape[:2]
        if self.cache is not None:
            return self._continue(self.cache, query_SBND, key_SBGD, value_SBGD)
        cos, sin = self._rotary_angles(sequence, query_SBND)
        mask_B1SS = None
        if documents_BS is not None:
            if self.reset_positions:
                positions_BS = _positions(documents_BS)
                cos, sin = cos[positions_BS][:, None], sin[positions_BS][:, None]
            if self.mask_documents:
                mask_B1SS = (documents_BS[:, None, :, None] == documents_BS[:, None, None, :]).tril()
        query_BNSD = _Rotate.apply(query_SBND, cos, sin)
        key_BGSD = _Rotate.apply(key_SBGD, cos, sin)
        context_BNSD = functional.scaled_dot_product_attention(
            query_BNSD,
            key_BGSD,
            value_SBGD.permute(1, 2, 0, 3),
            attn_mask=mask_B1SS,
            is_causal=mask_B1SS is None,
            enable_gqa=query_SBND.shape[2] != key_SBGD.shape[2],
        )
        return context_BNSD.permute(2, 0, 1, 3).reshape(sequence, batch, -1)

    def _continue(self, cache: KeyValueCache, query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor) -> Tensor:
        """Attend to what the cache holds too; the new positions are its own."""
        sequence, batch = query_SBND.shape[:2]
        cos, sin = self._rotary_angles(cache.length, query_SBND)
        places = cache.step.positions_B
        if places is None:
            cos, sin = cos[:sequence], sin[:sequence]
        else:
            cos, sin = cos[places][:, None, None], sin[places][:, None, None]
        context_BNSD = cache.attend(
            _Rotate.apply(query_SBND, cos, sin), _Rotate.apply(key_SBGD, cos, sin), value_SBGD.permute(1, 2, 0, 3)
        )
        return context_BNSD.permute(2, 0, 1, 3).reshape(sequence, batch, -1)

    def _rotary_angles(self, sequence: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and signed sin, (S, D) each, in the dtype of the activations; computed in fp32 once."""
        cached = self._angles
        if cached is None or cached[0].shape[0] != sequence or cached[0].dtype != like.dtype:
            exponents = torch.arange(0, self.head_dim, 2, device=like.device, dtype=torch.float32) / self.head_dim
            positions = torch.arange(sequence, device=like.device, dtype=torch.float32)
            angles = torch.outer(positions, self.rotary_base**-exponents)
            cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
            cached = self._angles = (torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))
        return cached


class _Rotate(torch.autograd.Function):
    """(S, B, N, D) -> (B, N, S, D), the halves of D rotated by cos, sin; backward rotates by the opposite angle.

    The angles are (S, D), or (B, 1, S, D) where each sample has positions of its own.
    """

    @staticmethod
    def forward(ctx: Any, x_SBND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x_SBND.permute(1, 2, 0, 3), cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad_BNSD,) = grads
        # As (S, 1 or B, 1, D), to meet the gradient in the order of x.
        cos, sin = (
            angles[:, None, None] if angles.dim() == 2 else angles.permute(2, 0, 1, 3) for angles in ctx.saved_tensors
        )
        grad_SBND = grad_BNSD.permute(2, 0, 1, 3)
        return _rotate(grad_SBND, cos, -sin), None, None


def _positions(documents_BS: Tensor) -> Tensor:
    """Return each token's place in its document."""
    places_BS = torch.arange(documents_BS.shape[1], device=documents_BS.device).expand_as(documents_BS)
    begins_BS = torch.zeros_like(documents_BS, dtype=torch.bool)
    begins_BS[:, 1:] = documents_BS[:, 1:] != documents_BS[:, :-1]
    return places_BS - torch.where(begins_BS, places_BS, 0).cummax(1).values


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x cos + swap(x) sin, contiguous in the order of x's dims; swap exchanges the halves of the last one."""
    x = x.contiguous()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1).mul_(sin).addcmul_(x, cos)
