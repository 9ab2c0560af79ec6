"""Matrix products of a linear layer, by the fastest library for the device.

On CPUs torch multiplies fp32 matrices with MKL, which leaves a fifth of an AMD processor unused; oneDNN, which torch
carries for bf16, does not. M rows, K inputs, N outputs.
"""

from typing import Any

import torch
from torch import Tensor

_FEW_ROWS = 64


def times_transposed(x: Tensor, weight_NK: Tensor) -> Tensor:
    """Return x @ weight.T, (..., N), from x (..., K): a linear layer forward."""
    if _onednn_is_faster(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight_NK, None, "none", [], "")
    return torch.matmul(x, weight_NK.t())


def times(grad: Tensor, weight_NK: Tensor) -> Tensor:
    """Return grad @ weight, (..., K), from grad (..., N): a linear layer's gradient of its input."""
    if _onednn_is_faster(grad):
        return torch.ops.mkldnn._linear_pointwise(grad, weight_NK.t(), None, "none", [], "")
    return torch.matmul(grad, weight_NK)


def accumulate_weight_gradient(main_grad_NK: Tensor, grad_MN: Tensor, x_MK: Tensor) -> None:
    """Add grad.T @ x to a weight's fp32 main gradient, in the product itself where the dtypes allow it."""
    if x_MK.dtype is main_grad_NK.dtype:
        main_grad_NK.addmm_(grad_MN.t(), x_MK)
    else:
        main_grad_NK.add_(grad_MN.t() @ x_MK)


class FusedWeightGradient:
    """Answers for APEX's extension `fused_weight_gradient_mlp_cuda`, on any device.

    Shapes: input (tokens, in), grad_output (tokens, out), main_grad (out, in).
    """

    @staticmethod
    def wgrad_gemm_accum_fp32(input: Tensor, grad_output: Tensor, main_grad: Tensor) -> None:
        accumulate_weight_gradient(main_grad, grad_output, input)


class Linear(torch.autograd.Function):
    """x @ weight.T whose weight gradient goes straight to `weight.main_grad`, as with Megatron's CUDA extension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_NK: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_NK)
        return times_transposed(x, weight_NK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        accumulate_weight_gradient(weight.main_grad, grad.flatten(0, -2), x.flatten(0, -2))
        # A gradient must arrive for the parameter's hook to run; the flag says that it is in main_grad already.
        weight.grad_added_to_main_grad = True
        return times(grad, weight), torch.empty_like(weight)


def _onednn_is_faster(x: Tensor) -> bool:
    # It lays a weight out anew for every product: with the few rows of texts that are continued, that is most of it.
    few = torch.is_inference_mode_enabled() and x.numel() < _FEW_ROWS * x.shape[-1]
    return not few and x.device.type == "cpu" and x.dtype is torch.float32 and torch.backends.mkldnn.is_available()
