"""Local SGD, DiLoCo and Streaming DiLoCo in one process with plain tensors, from the papers' equations.

Written to be read against arXiv 2311.08105 (algorithm 1) and 2501.18512 (algorithm 2); shares with the product only the
model's gradient. AdamW is Loshchilov and Hutter's (arXiv 1711.05101), clipping Pascanu et al.'s.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Gradient = Callable[[Weights, int, int], Weights]  # of (parameters, site, step from 1), a mean over tokens


@dataclass
class Site:
    parameters: Weights
    first: Weights = field(default_factory=dict)
    second: Weights = field(default_factory=dict)


@dataclass(kw_only=True)
class Recipe:
    sites: int
    every: int  # H
    fragments: int  # P
    overlap: int  # tau
    merge: float  # alpha
    outer_rate: float
    outer_momentum: float
    rate: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    decay: float = 0.1
    clip: float = 1.0


def train_reference(
    start: Weights, gradient: Gradient, recipe: Recipe, steps: int, fragment_of: Callable[[str], int]
) -> list[Site]:
    sites = [Site({name: value.clone() for name, value in start.items()}) for _ in range(recipe.sites)]
    outer = {name: value.clone() for name, value in start.items()}
    momentum = {name: torch.zeros_like(value) for name, value in start.items()}
    in_flight: dict[int, tuple[int, Weights]] = {}
    for step in range(1, steps + 1):
        for number, site in enumerate(sites):
            adamw(site, gradient(site.parameters, number, step), step, recipe)
        for fragment in range(recipe.fragments):
            if step % recipe.every == (fragment * recipe.every // recipe.fragments) % recipe.every:
                names = [name for name in start if fragment_of(name) == fragment]
                mean = {
                    name: sum((outer[name] - site.parameters[name] for site in sites), torch.zeros(())) / recipe.sites
                    for name in names
                }
                in_flight[fragment] = (step, mean)
        for fragment, (sent, mean) in list(in_flight.items()):
            if step == sent + recipe.overlap or step == steps:
                del in_flight[fragment]
                for name, delta in mean.items():
                    outer[name], momentum[name] = nesterov(outer[name], momentum[name], delta, recipe)
                    for site in sites:
                        site.parameters[name] = recipe.merge * site.parameters[name] + (1 - recipe.merge) * outer[name]
    return sites


def nesterov(outer: Tensor, momentum: Tensor, delta: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return the outer parameters and the momentum after one outer step."""
    momentum = recipe.outer_momentum * momentum + delta
    return outer - recipe.outer_rate * (delta + recipe.outer_momentum * momentum), momentum


def adamw(site: Site, gradient: Weights, step: int, recipe: Recipe) -> None:
    norm = torch.sqrt(sum((value.double().square().sum() for value in gradient.values()), torch.zeros(())))
    factor = min(1.0, recipe.clip / (float(norm) + 1e-6))
    for name, value in gradient.items():
        clipped = value * factor
        first = site.first[name] = recipe.beta1 * site.first.get(name, 0.0) + (1 - recipe.beta1) * clipped
        second = site.second[name] = recipe.beta2 * site.second.get(name, 0.0) + (1 - recipe.beta2) * clipped**2
        corrected = first / (1 - recipe.beta1**step)
        spread = torch.sqrt(second / (1 - recipe.beta2**step)) + recipe.epsilon
        decay = 0.0 if re.search(r"norm\.weight$", name) else recipe.decay
        old = site.parameters[name]
        site.parameters[name] = old * (1 - recipe.rate * decay) - recipe.rate * corrected / spread
