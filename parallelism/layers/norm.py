"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467) that knows about sequence parallelism."""

from typing import Any

import torch
from torch import Tensor


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight over the last dim.

    Under sequence parallelism each tensor rank sees its part of the sequence: the weight's gradient is a partial sum;
    the mark on the parameter makes the engine add the parts up.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x_SBH: Tensor) -> Tensor:
        return _RMSNorm.apply(x_SBH, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """Few passes over memory, and only the input and one number per row kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        reciprocal_rms = (norm.square_() / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, reciprocal_rms)
        return (x * reciprocal_rms.to(x.dtype)).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        x, weight, reciprocal_rms = ctx.saved_tensors
        scale = reciprocal_rms.to(x.dtype)
        normalized = x * scale
        weight_grad = (grad * normalized).flatten(0, -2).sum(0)
        # d/dx of x/rms(x): (g - n * mean(g * n)) / rms, with g = grad * weight and n = x / rms.
        scaled = grad * weight
        projection = (scaled * normalized).mean(-1, keepdim=True)
        return scaled.addcmul_(normalized, projection, value=-1).mul_(scale), weight_grad, None
