"""Output layer and cross-entropy in one, a few rows at a time, so that the logits of a batch never exist at once.

The idea is Liger Kernel's fused linear cross-entropy (arXiv 2410.10989, section 3.2). Its gain here is memory that
stays in cache: a fresh buffer of all logits costs more in page faults than in arithmetic. H hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from isthmus.parallelism.layers.matmul import accumulate_weight_gradient, times, times_transposed

_CHUNK_ELEMENTS = 1 << 22  # logits held at a time, unless that were fewer rows than a matrix product needs
_FEWEST_ROWS = {"cpu": 256, "cuda": 2048}


def linear_cross_entropy(
    hidden_SBH: Tensor, weight_VH: Tensor, labels_SB: Tensor, mask_SB: Tensor, tied: bool
) -> Tensor:
    """Return -log softmax(hidden @ weight.T)[label] of each token, (S, B) in fp32.

    The mask must be what the caller will multiply the losses with before summing them: the weight's gradient is formed
    in the forward pass, where the logits are at hand. It goes straight to `weight.main_grad`. `tied`: the parameter is
    the embedding of this model chunk, and tells that it is done through its other use.
    """
    return _LinearCrossEntropy.apply(hidden_SBH, weight_VH, labels_SB, mask_SB, tied)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_SBH: Tensor, weight: Tensor, labels_SB: Tensor, mask_SB: Tensor, tied: bool) -> Tensor:
        hidden = hidden_SBH.reshape(-1, hidden_SBH.shape[-1])
        labels, mask = labels_SB.reshape(-1, 1), mask_SB.reshape(-1, 1)
        differentiate = hidden_SBH.requires_grad
        losses = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if differentiate else None
        rows = max(_FEWEST_ROWS.get(hidden.device.type, 1), _CHUNK_ELEMENTS // weight.shape[0])
        for first in range(0, hidden.shape[0], rows):
            chunk = slice(first, first + rows)
            logits = times_transposed(hidden[chunk], weight)
            log_probabilities = functional.log_softmax(logits, dim=-1, dtype=torch.float32)
            losses[chunk] = log_probabilities.gather(1, labels[chunk]).squeeze(1).neg_()
            if hidden_grad is not None:
                # d/dlogits of mask * loss = mask * (softmax - onehot)
                logit_grad = log_probabilities.exp_().mul_(mask[chunk])
                logit_grad.scatter_add_(1, labels[chunk], -mask[chunk])
                logit_grad = logit_grad.to(hidden.dtype)
                hidden_grad[chunk] = times(logit_grad, weight)
                accumulate_weight_gradient(weight.main_grad, logit_grad, hidden[chunk])  # type: ignore[attr-defined]
        ctx.hidden_grad, ctx.weight, ctx.tied, ctx.shape = hidden_grad, weight, tied, hidden_SBH.shape
        return losses.view(labels_SB.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, hidden_grad = ctx.weight, ctx.hidden_grad
        weight_grad = None
        if not ctx.tied:
            # A gradient must arrive for the parameter's hook to run; the flag says that it is in main_grad already.
            weight.grad_added_to_main_grad = True
            weight_grad = torch.empty_like(weight)
        return hidden_grad.view(ctx.shape), weight_grad, None, None, None
