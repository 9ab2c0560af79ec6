"""What repeated data is worth: sources with so many unique tokens each, and the law of Muennighoff et al. over them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from isthmus.train.planner.laws import FLOPS_PER_PARAMETER_TOKEN, LossLaw

REPEATED_TOKENS = 15.387756  # R*_D
EXCESS_PARAMETERS = 5.309743  # R*_N
SOURCE = "Muennighoff et al. 2023, arXiv 2305.16264, equations 5 and 6: R*_D = 15.387756, R*_N = 5.309743"


def effective(unique: float, total: float, half_life: float) -> float:
    """Return U + U R* (1 - exp(-R / R*)) with R = total / unique - 1: what `total` with repetition is worth."""
    if total <= unique:
        return total
    repeats = total / unique - 1.0
    return unique * (1.0 + half_life * -math.expm1(-repeats / half_life))


def params_for_tokens(law: LossLaw, tokens: float) -> float:
    """Return the N for which D tokens are compute-optimal."""
    ratio = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta))
    # N = G (C/6)^a and D = (C/6)^b / G
    return float(ratio * (tokens * ratio) ** (law.exponent / (1 - law.exponent)))


@dataclass(frozen=True)
class LimitedLaw:
    """A loss law over sources that run out: each source's tokens are worth less from the second pass on.

    With one source this is L(N, D; U) of the paper. With several, UniMax says what is read of each, and effective
    tokens add up (an assumption: no published law has several sources). The half-lives were fitted with Muennighoff's
    constants; with others they are assumed to carry over.

    Args:
        unique: tokens of each source; empty where data do not run out.
        max_epochs: up to which the mixture is evened out.
    """

    law: LossLaw
    unique: Mapping[str, float]
    max_epochs: float = 4.0

    def read(self, tokens: float) -> dict[str, float]:
        """Return how many tokens are read of each source."""
        shares = unimax_shares(self.unique, tokens, self.max_epochs)
        return {name: share * tokens for name, share in shares.items()}

    def effective_tokens(self, tokens: float) -> float:
        if not self.unique:
            return tokens
        return sum(effective(self.unique[name], read, REPEATED_TOKENS) for name, read in self.read(tokens).items())

    def unique_tokens_read(self, tokens: float) -> float:
        if not self.unique:
            return tokens
        return sum(min(self.unique[name], read) for name, read in self.read(tokens).items())

    def effective_params(self, params: float, tokens: float) -> float:
        """Return N'; parameters beyond what the unique tokens read are optimal for are worth less, repeated or not."""
        if not self.unique:
            return params
        fresh = self.unique_tokens_read(tokens)
        return effective(min(params_for_tokens(self.law, fresh), params), params, EXCESS_PARAMETERS)

    def loss(self, params: float, tokens: float) -> float:
        return self.law.loss(self.effective_params(params, tokens), self.effective_tokens(tokens))


def unimax_shares(unique_tokens: Mapping[str, float], tokens: float, max_epochs: float) -> dict[str, float]:
    """Return shares as even as they can be with no source passed over more than `max_epochs` times.

    UniMax (arXiv 2304.09151, algorithm 1): in order of size each source gets an equal part of what is left, capped.
    Where all caps together fall short of `tokens`, the rest is spread in proportion to size.
    """
    left, granted = tokens, {}
    names = sorted(unique_tokens, key=lambda name: unique_tokens[name])
    for number, name in enumerate(names):
        granted[name] = min(left / (len(names) - number), max_epochs * unique_tokens[name])
        left -= granted[name]
    everything = sum(unique_tokens.values())
    if left > 0:
        granted = {name: tokens * unique_tokens[name] / everything for name in names}
    return {name: granted[name] / tokens for name in unique_tokens}


def training_flops(params: float, tokens: float) -> float:
    return FLOPS_PER_PARAMETER_TOKEN * params * tokens
