"""One token out of a model's logits."""

import torch
from torch import Tensor

_LIKELY = 512  # tokens that are looked at first for top-p: sorting a whole vocabulary takes longer than a small model


def draw(logits_V: Tensor, *, temperature: float, top_p: float, uniform: float) -> int:
    """Return the token that a number from [0, 1) chooses.

    Args:
        temperature: 0 always gives the most probable token.
        top_p: the most probable tokens whose probabilities reach this sum are left (nucleus, arXiv 1904.09751).
    """
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities = torch.softmax(logits_V.double() / temperature, 0)
    if top_p >= 1:
        return _at(probabilities, uniform)
    count = min(_LIKELY, len(probabilities))
    likely, tokens = probabilities.topk(count)
    if count < len(probabilities) and float(likely.sum()) < top_p:
        likely, tokens = probabilities.sort(descending=True, stable=True)
    before = likely.cumsum(0) - likely
    nucleus = likely[before < top_p]
    return int(tokens[_at(nucleus, uniform)])


def _at(weights: Tensor, uniform: float) -> int:
    """Return the place in which a point of the weights' length lies."""
    ends = weights.cumsum(0)
    place = torch.searchsorted(ends, uniform * ends[-1], right=True)
    return min(int(place), len(weights) - 1)
