"""Tokens out of a model's logits. B texts, V tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

_LIKELY = 512  # tokens that are looked at first for top-p: sorting a whole vocabulary takes longer than a small model


def draw(logits_BV: Tensor, *, temperature: float, top_p: float, uniforms_B: Sequence[float]) -> list[int]:
    """Return the token of each text that a number from [0, 1) chooses; a row's depends on no other row.

    Args:
        temperature: 0 always gives the most probable token.
        top_p: the most probable tokens whose probabilities reach this sum are left (nucleus, arXiv 1904.09751).
    """
    if temperature == 0:
        return logits_BV.argmax(-1).tolist()
    points_B = torch.tensor(uniforms_B, dtype=torch.float64, device=logits_BV.device)
    probabilities_BV = torch.softmax(logits_BV.double() / temperature, -1)
    if top_p >= 1:
        return _at(probabilities_BV, points_B).tolist()
    few = probabilities_BV.shape[1] <= 4 * _LIKELY
    ordered = probabilities_BV.sort(descending=True, stable=True) if few else probabilities_BV.topk(_LIKELY, -1)
    likely, tokens = ordered
    drawn = tokens.gather(1, _in_nucleus(likely, top_p, points_B)[:, None])[:, 0]
    if not few:
        flat = (likely.sum(-1) < top_p).nonzero()[:, 0]
        if len(flat):
            likely, tokens = probabilities_BV[flat].sort(descending=True, stable=True)
            drawn[flat] = tokens.gather(1, _in_nucleus(likely, top_p, points_B[flat])[:, None])[:, 0]
    return drawn.tolist()


def _in_nucleus(sorted_BV: Tensor, top_p: float, points_B: Tensor) -> Tensor:
    """Return the place that each point falls on among the first probabilities that reach `top_p`."""
    before = sorted_BV.cumsum(-1) - sorted_BV
    return _at(sorted_BV.where(before < top_p, 0), points_B)


def _at(weights_BV: Tensor, points_B: Tensor) -> Tensor:
    """Return the place in which each point of the weights' length lies."""
    ends = weights_BV.cumsum(-1)
    # Rounding could make a point of almost 1 the whole length, which lies in no place.
    points = (points_B * ends[:, -1]).minimum(torch.nextafter(ends[:, -1], ends.new_zeros(())))
    return torch.searchsorted(ends, points[:, None], right=True)[:, 0]
