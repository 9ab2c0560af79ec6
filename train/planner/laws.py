"""Loss as a function of parameters N and training tokens D, and what is optimal under a budget C = 6 N D FLOPs."""

import math
from dataclasses import dataclass

FLOPS_PER_PARAMETER_TOKEN = 6.0


@dataclass(frozen=True, kw_only=True)
class LossLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta (arXiv 2203.15556, equation 2).

    `smallest_flops` to `largest_flops` are the runs that the law was fitted to; `samples` are bootstrap refits (E, A,
    B, alpha, beta), from which intervals come.
    """

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str
    largest_flops: float
    smallest_flops: float = 0.0
    samples: tuple[tuple[float, float, float, float, float], ...] = ()

    def loss(self, params: float, tokens: float) -> float:
        return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """Return the N and D that minimise the loss under C = 6 N D, in closed form (equation 4)."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        params = ratio * (flops / FLOPS_PER_PARAMETER_TOKEN) ** self.exponent
        return params, flops / FLOPS_PER_PARAMETER_TOKEN / params

    @property
    def exponent(self) -> float:
        """Return a of N ~ C^a."""
        return self.beta / (self.alpha + self.beta)

    def flops_for_params(self, params: float) -> float:
        """Return the budget whose optimum has N parameters."""
        at_one = self.optimum(1.0)[0]
        return float((params / at_one) ** (1 / self.exponent))

    def flops_for_loss(self, loss: float) -> float:
        """Return the budget whose optimum reaches a loss; infinite at or below the entropy E."""
        if loss <= self.E:
            return math.inf
        low, high = math.log(1e6), math.log(1e45)
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.loss(*self.optimum(math.exp(middle))) > loss else (low, middle)
        return math.exp(high)

    def with_constants(self, constants: tuple[float, float, float, float, float]) -> "LossLaw":
        E, A, B, alpha, beta = constants
        return LossLaw(
            name=self.name, E=E, A=A, B=B, alpha=alpha, beta=beta, source=self.source, largest_flops=self.largest_flops
        )


@dataclass(frozen=True, kw_only=True)
class RatioLaw:
    """N = coefficient x C^exponent with C = 6 N D: what approaches 1 and 2 and DeepSeek give. It knows no loss."""

    name: str
    coefficient: float
    exponent: float
    source: str
    largest_flops: float

    def optimum(self, flops: float) -> tuple[float, float]:
        params = self.coefficient * flops**self.exponent
        return params, flops / FLOPS_PER_PARAMETER_TOKEN / params

    def flops_for_params(self, params: float) -> float:
        return float((params / self.coefficient) ** (1 / self.exponent))


_CHINCHILLA_LARGEST = 1.3e22  # of the 240 points that were read off the figure (arXiv 2404.10102)
_CHINCHILLA_SMALLEST = 1.4e18
_HOFFMANN = "Hoffmann et al. 2022, arXiv 2203.15556"

HOFFMANN = LossLaw(
    name="hoffmann-3",
    E=math.exp(0.5267228),
    A=math.exp(6.0073404),
    B=math.exp(6.0179186),
    alpha=0.33917084,
    beta=0.2849083,
    source=f"{_HOFFMANN}, approach 3, unrounded constants from the paper's LaTeX source",
    largest_flops=_CHINCHILLA_LARGEST,
    smallest_flops=_CHINCHILLA_SMALLEST,
)
HOFFMANN_ROUNDED = LossLaw(
    name="hoffmann-3-rounded",
    E=1.69,
    A=406.4,
    B=410.7,
    alpha=0.34,
    beta=0.28,
    source=f"{_HOFFMANN}, equation 10",
    largest_flops=_CHINCHILLA_LARGEST,
    smallest_flops=_CHINCHILLA_SMALLEST,
)
HOFFMANN_TABLE = LossLaw(
    name="hoffmann-3-table",
    E=1.69,
    A=406.4,
    B=410.7,
    alpha=0.336,
    beta=0.283,
    source=f"{_HOFFMANN}, the exponents that reproduce table A3; also used by Sardana et al., arXiv 2401.00448",
    largest_flops=_CHINCHILLA_LARGEST,
    smallest_flops=_CHINCHILLA_SMALLEST,
)
BESIROGLU = LossLaw(
    name="besiroglu",
    E=1.8172,
    A=482.01,
    B=2085.43,
    alpha=0.3478,
    beta=0.3658,
    source="Besiroglu et al. 2024, arXiv 2404.10102, a refit of the Chinchilla points",
    largest_flops=_CHINCHILLA_LARGEST,
    smallest_flops=_CHINCHILLA_SMALLEST,
)
MUENNIGHOFF = LossLaw(
    name="muennighoff",
    E=math.exp(0.6254804),
    A=math.exp(6.255414),
    B=math.exp(7.3049974),
    alpha=0.3526596,
    beta=0.3526596,
    source="Muennighoff et al. 2023, arXiv 2305.16264, C4, unrounded constants of their code",
    largest_flops=9.3e21,  # 8.67B parameters on 178B tokens
)
HOFFMANN_1 = RatioLaw(
    name="hoffmann-1",
    coefficient=0.099159,
    exponent=0.498099,
    source=f"{_HOFFMANN}, approach 1: a line through the rows of table 3",
    largest_flops=_CHINCHILLA_LARGEST,
)
HOFFMANN_2 = RatioLaw(
    name="hoffmann-2",
    coefficient=0.144877,
    exponent=0.489942,
    source=f"{_HOFFMANN}, approach 2: a line through the rows of table A3",
    largest_flops=_CHINCHILLA_LARGEST,
)
DEEPSEEK = RatioLaw(
    name="deepseek",
    coefficient=0.1715 / 6,
    exponent=0.5243,
    source="DeepSeek LLM 2024, arXiv 2401.02954, equation 4: M = .1715 C^.5243 non-embedding FLOPs a token, N = M / 6",
    largest_flops=3e20,
)

LAWS: dict[str, LossLaw] = {
    law.name: law for law in (BESIROGLU, HOFFMANN, HOFFMANN_ROUNDED, HOFFMANN_TABLE, MUENNIGHOFF)
}
RATIO_LAWS: dict[str, RatioLaw] = {law.name: law for law in (HOFFMANN_1, HOFFMANN_2, DEEPSEEK)}


def transformer_flops_per_sequence(
    *, layers: int, width: int, ffn: int, heads: int, head_width: int, sequence: int, vocabulary: int = 0
) -> float:
    """Return forward and backward FLOPs of a sequence, counted part by part (arXiv 2203.15556, appendix F).

    Without a vocabulary the embedding and the logits are left out: only so is the paper's table A4 reproduced.
    """
    attention_width = heads * head_width
    per_layer = (
        2 * 3 * sequence * width * attention_width  # queries, keys, values
        + 2 * sequence * sequence * attention_width  # keys times queries
        + 3 * heads * sequence * sequence  # softmax
        + 2 * sequence * sequence * attention_width  # its product with the values
        + 2 * sequence * attention_width * width  # output projection
        + 2 * sequence * (2 * width * ffn)  # the dense block
    )
    ends = 2 * 2 * sequence * vocabulary * width
    return 3.0 * (layers * per_layer + ends)
