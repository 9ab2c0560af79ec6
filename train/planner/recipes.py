"""Rules for learning rate and batch size, and what local sync costs in loss. Every constant has its paper."""

import math
from dataclasses import dataclass

STEP_LAW = "Step Law, arXiv 2503.04715: lr = 1.79 N^-.713 D^.307, batch = .58 D^.571 tokens"
DEEPSEEK = "DeepSeek LLM, arXiv 2401.02954, equation 1: lr = .3118 C^-.125, batch = .2920 C^.3271 tokens"
DILOCO = (
    "Scaling laws of DiLoCo, arXiv 2503.09799: L = A N^alpha for data parallel and M sites, and losses at 4B and 10B"
)
STREAMING = "Streaming DiLoCo, arXiv 2501.18512: loss at H = 30 and H = 100 of 35M to 1B parameters"

# Loss = A N^alpha at D = 20 N, fitted to 35M - 2.4B: (A, alpha) of data parallel (0) and of M sites.
_DILOCO_LOSS = {
    0: (18.129, -0.0953),
    1: (18.363, -0.0961),
    2: (18.768, -0.0969),
    4: (19.762, -0.0992),
    8: (21.051, -0.1018),
}
# Losses measured at 4B and 10B: the fits put them too low for M = 4.
_DILOCO_MEASURED = {0: (2.224, 2.090), 1: (2.219, 2.086), 2: (2.220, 2.086), 4: (2.230, 2.096)}
_FITTED_SIZES = (35e6, 2.4e9)
_MEASURED_SIZES = (4e9, 10e9)
# (loss at H=100 - loss at H=30) / loss of data parallel, by size.
_H_30_TO_100 = (0.05 / 3.51 - 0.02 / 3.51, 0.01 / 3.19, 0.02 / 2.97, 0.02 / 2.67, 0.02 / 2.49)


@dataclass(frozen=True)
class Recipe:
    """A learning rate, a batch in tokens, and the rule that they come from."""

    learning_rate: float
    batch_tokens: float
    source: str


def step_law(params: float, tokens: float) -> Recipe:
    return Recipe(1.79 * params**-0.713 * tokens**0.307, 0.58 * tokens**0.571, STEP_LAW)


def deepseek(flops: float) -> Recipe:
    return Recipe(0.3118 * flops**-0.125, 0.2920 * flops**0.3271, DEEPSEEK)


def diloco(params: float, sites: int) -> Recipe:
    """Return the inner learning rate and the batch of all sites that DiLoCo's joint laws in N and M hold to be best."""
    return Recipe(22_256 * params**-0.8827 * sites**0.2929, 14.521 * params**0.4695 * sites**0.3399, DILOCO)


def local_sync_penalty(params: float, sites: int, every: int) -> float:
    """Return the relative rise of the loss by local sync over `sites` sites with H = `every`, against data parallel.

    Up to 2.4B parameters the ratio of the published fits, from 4B to 10B that of the losses measured there (M = 8
    continues the step from 2 to 4), straight in ln N between them and constant outside; straight in ln M. What H adds
    is straight in ln H through the mean of the published steps from 30 to 100. A ratio below 1 is counted as 1. No
    published law links H and tokens per parameter: all were measured at 20.
    """
    if sites < 2:
        return 0.0
    amount = min(sites, 8)
    below = max(count for count in (1, 2, 4, 8) if count <= amount)
    above = min(count for count in (1, 2, 4, 8) if count >= amount)
    part = 0.0 if above == below else math.log(amount / below) / math.log(above / below)
    rise = (1 - part) * _ratio(params, below) + part * _ratio(params, above) - 1.0
    per_log = sum(_H_30_TO_100) / len(_H_30_TO_100) / math.log(100 / 30)
    return max(0.0, rise + per_log * math.log(every / 30))


def _ratio(params: float, sites: int) -> float:
    """Return the loss of M sites over that of data parallel."""
    fitted_to, measured_from = _FITTED_SIZES[1], _MEASURED_SIZES[0]
    if params >= measured_from:
        low, high = (_measured_ratio(place, sites) for place in (0, 1))
        part = min(1.0, math.log(params / measured_from) / math.log(_MEASURED_SIZES[1] / measured_from))
        return (1 - part) * low + part * high
    if params > fitted_to:
        part = math.log(params / fitted_to) / math.log(measured_from / fitted_to)
        return (1 - part) * _ratio(fitted_to, sites) + part * _ratio(measured_from, sites)
    size = max(params, _FITTED_SIZES[0])
    (a, alpha), (a0, alpha0) = _DILOCO_LOSS[sites], _DILOCO_LOSS[0]
    return a * size**alpha / (a0 * size**alpha0)


def _measured_ratio(place: int, sites: int) -> float:
    if sites == 8:
        return 2 * _measured_ratio(place, 4) - _measured_ratio(place, 2)
    return _DILOCO_MEASURED[sites][place] / _DILOCO_MEASURED[0][place]


def is_extrapolated(params: float, sites: int) -> bool:
    """Return whether a penalty lies outside what was published."""
    most = 8 if params <= _FITTED_SIZES[1] else 4
    return sites > most or not _FITTED_SIZES[0] <= params <= _MEASURED_SIZES[1]
