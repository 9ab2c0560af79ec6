"""Rules for learning rate and batch size, and what local sync costs in loss. Every constant has its paper."""

import math
from dataclasses import dataclass

STEP_LAW = "Step Law, arXiv 2503.04715: lr = 1.79 N^-.713 D^.307, batch = .58 D^.571 tokens"
DEEPSEEK = "DeepSeek LLM, arXiv 2401.02954, equation 1: lr = .3118 C^-.125, batch = .2920 C^.3271 tokens"
DILOCO = "Scaling laws of DiLoCo, arXiv 2503.09799, tables 7 and 10: L = A N^alpha for data parallel and M sites"
STREAMING = "Streaming DiLoCo, arXiv 2501.18512: loss at H = 30 and H = 100 of 35M to 1B parameters"

# Loss = A N^alpha at D = 20 N: (A, alpha) of data parallel (0) and of M sites.
_DILOCO_LOSS = {
    0: (18.129, -0.0953),
    1: (18.363, -0.0961),
    2: (18.768, -0.0969),
    4: (19.762, -0.0992),
    8: (21.051, -0.1018),
}
_DILOCO_SIZES = (35e6, 10e9)  # fitted to 2.4B, tested at 4B and 10B
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


def local_sync_penalty(params: float, sites: int, every: int) -> float:
    """Return the relative rise of the loss by local sync over `sites` sites with H = `every`, against data parallel.

    The ratio of the published fits, between their sizes and up to 8 sites, straight in ln M between them, plus what H
    adds: straight in ln H through the mean of the published steps from 30 to 100. A ratio below 1 is counted as 1.
    """
    if sites < 2:
        return 0.0
    size = min(max(params, _DILOCO_SIZES[0]), _DILOCO_SIZES[1])
    known = sorted(_DILOCO_LOSS)[1:]
    amount = min(sites, known[-1])
    above = next(count for count in known if count >= amount)
    below = max(count for count in known if count <= amount)

    def ratio(count: int) -> float:
        (a, alpha), (a0, alpha0) = _DILOCO_LOSS[count], _DILOCO_LOSS[0]
        return a * size**alpha / (a0 * size**alpha0)

    part = 0.0 if above == below else math.log(amount / below) / math.log(above / below)
    rise = (1 - part) * ratio(below) + part * ratio(above) - 1.0
    per_log = sum(_H_30_TO_100) / len(_H_30_TO_100) / math.log(100 / 30)
    return max(0.0, rise + per_log * math.log(every / 30))


def is_extrapolated(params: float, sites: int) -> bool:
    """Return whether a penalty lies outside what was published."""
    return sites > max(_DILOCO_LOSS) or not _DILOCO_SIZES[0] <= params <= _DILOCO_SIZES[1]
