"""The best (N, D) for what is given: a training budget, a size, a loss or a ratio; with inference, with scarce data.

At the least total cost 6 N D + 2 N I of reaching a loss, with I tokens of inference over the model's life, one percent
more parameters and one percent more tokens buy loss in proportion to what they cost:

    (-dL/dlnN) / (-dL/dlnD) = (6 D + 2 I) / (6 D) = 1 + I / (3 D)

(the first-order condition of Sardana et al., arXiv 2401.00448, equation 3; I = 0 is Chinchilla). For every D it has one
N, so that the best plans form a curve, and what is given picks a point of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from isthmus.errors import UserError
from isthmus.train.planner.repetition import training_flops

_STEP = 1e-4  # of the numeric derivative in ln N and ln D
_LARGEST_PARAMS = 1e16


class Loss(Protocol):
    def loss(self, params: float, tokens: float) -> float: ...


@dataclass(frozen=True)
class Optimum:
    params: float
    tokens: float
    loss: float
    inference_tokens: float = 0.0

    @property
    def training_flops(self) -> float:
        return training_flops(self.params, self.tokens)

    @property
    def total_flops(self) -> float:
        return self.training_flops + 2.0 * self.params * self.inference_tokens


def best_params(law: Loss, tokens: float, inference_tokens: float = 0.0) -> float:
    """Return the N that satisfies the condition above for D tokens."""
    price = 1.0 + inference_tokens / (3.0 * tokens)

    def too_small(params: float) -> bool:
        up, down = math.exp(_STEP), math.exp(-_STEP)
        gain_params = law.loss(params * down, tokens) - law.loss(params * up, tokens)
        gain_tokens = law.loss(params, tokens * down) - law.loss(params, tokens * up)
        return gain_params > price * gain_tokens

    return _bisect(too_small, 1.0, _LARGEST_PARAMS)


def for_flops(law: Loss, flops: float, inference_tokens: float = 0.0) -> Optimum:
    """Return the plan on the curve whose *training* takes `flops`."""
    if not inference_tokens:  # one dimension is enough, and holds where scarce data bend the curve
        return _on_budget(law, flops)
    return _along(law, lambda best: best.training_flops < flops, inference_tokens)


def for_loss(law: Loss, loss: float, inference_tokens: float = 0.0) -> Optimum:
    """Return the cheapest plan that reaches a loss.

    Raises:
        UserError: no plan does.
    """
    best = _along(law, lambda point: point.loss > loss, inference_tokens)
    if best.loss > loss * (1 + 1e-4):
        raise UserError(
            f"{loss:g} is out of reach, by this law and these data; the best is {best.loss:.4f}",
            where="plan.loss",
            fix="ask for a higher loss, or give more unique tokens",
        )
    return best


def for_params(law: Loss, params: float, inference_tokens: float = 0.0) -> Optimum:
    """Return the plan on the curve with N parameters."""
    best = _along(law, lambda point: point.params < params, inference_tokens)
    return Optimum(params, best.tokens, law.loss(params, best.tokens), inference_tokens)


def for_ratio(law: Loss, flops: float, tokens_per_parameter: float, inference_tokens: float = 0.0) -> Optimum:
    """Return the plan that spends `flops` at a fixed ratio: over-training, when it is above the optimum's."""
    params = math.sqrt(flops / 6.0 / tokens_per_parameter)
    tokens = params * tokens_per_parameter
    return Optimum(params, tokens, law.loss(params, tokens), inference_tokens)


def at_budget(law: Loss, flops: float, params: float, inference_tokens: float = 0.0) -> Optimum:
    """Return the plan of N parameters that spends `flops`."""
    tokens = flops / 6.0 / params
    return Optimum(params, tokens, law.loss(params, tokens), inference_tokens)


def _on_budget(law: Loss, flops: float) -> Optimum:
    """Minimise over ln N by a coarse scan and golden sections: only one valley near the best point is assumed."""
    best = min((at_budget(law, flops, 10 ** (i / 20)) for i in range(60, 20 * 15)), key=lambda point: point.loss)
    low, high = math.log(best.params) - 0.25, math.log(best.params) + 0.25
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if at_budget(law, flops, math.exp(left)).loss < at_budget(law, flops, math.exp(right)).loss:
            high = right
        else:
            low = left
    return at_budget(law, flops, math.exp((low + high) / 2))


def _along(law: Loss, too_small: Callable[[Optimum], bool], inference_tokens: float) -> Optimum:
    """Return the first point of the curve, by growing D, that is not too small."""

    def point(tokens: float) -> Optimum:
        params = best_params(law, tokens, inference_tokens)
        return Optimum(params, tokens, law.loss(params, tokens), inference_tokens)

    return point(_bisect(lambda tokens: too_small(point(tokens)), 1e3, 1e18))


def _bisect(below: Callable[[float], bool], low: float, high: float) -> float:
    left, right = math.log(low), math.log(high)
    for _ in range(60):
        middle = (left + right) / 2
        left, right = (middle, right) if below(math.exp(middle)) else (left, middle)
    return math.exp((left + right) / 2)
