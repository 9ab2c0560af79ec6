"""Cross-entropy of each token from unsplit logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log softmax(logits)[label] in fp32, in the shape of `labels`; logits have one more dim, the vocabulary."""
    return _TokenLosses.apply(logits, labels)


class _TokenLosses(torch.autograd.Function):
    """Keeps the log-probabilities and turns them into the gradient in place: no second buffer of logits' size."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = functional.log_softmax(logits, dim=-1, dtype=torch.float32)
        index = labels.unsqueeze(-1)
        ctx.save_for_backward(log_probabilities, index)
        ctx.dtype = logits.dtype
        return log_probabilities.gather(-1, index).squeeze(-1).neg_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        log_probabilities, index = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1).float()
        # d/dlogits = (softmax - onehot) * grad. The buffer is ours alone: nothing else has seen it.
        gradient = log_probabilities.exp_().mul_(grad)
        gradient.scatter_add_(-1, index, -grad)
        return gradient.to(ctx.dtype), None
