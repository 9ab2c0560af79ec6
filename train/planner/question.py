"""What is asked, as plain data, and the (N, D) that answers it for a law and a budget."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from isthmus.errors import UserError
from isthmus.train.planner import optimum
from isthmus.train.planner.laws import LossLaw
from isthmus.train.planner.optimum import Loss, Optimum
from isthmus.train.planner.recipes import local_sync_penalty
from isthmus.train.planner.repetition import LimitedLaw


@dataclass(frozen=True, kw_only=True)
class Question:
    """One of flops, days, params and loss is given; the rest as in `PlanSection`."""

    law: LossLaw
    flops: float | None = None
    days: float | None = None
    params: float | None = None
    loss: float | None = None
    tokens_per_parameter: float | None = None
    unique_tokens: Mapping[str, float]
    max_epochs: float = 4.0
    inference_tokens: float = 0.0
    max_params: float | None = None
    max_tokens: float | None = None
    max_days: float | None = None
    max_cost: float | None = None
    prefer_cost: bool = False
    sync_penalty: float | None = None
    vocabulary: int = 128_256
    sequence_length: int = 4096
    precision: str = "bf16"
    global_batch: int | None = None
    bytes_per_token: float = 4.0
    restart_seconds: float = 600.0
    repair_hours: float = 24.0
    power_overhead: float = 1.2

    @property
    def limited(self) -> LimitedLaw:
        return LimitedLaw(self.law, self.unique_tokens, self.max_epochs)

    def penalty(self, params: float, sites: int, every: int) -> float:
        """Return the relative rise of the loss by local sync."""
        if self.sync_penalty is not None:
            return self.sync_penalty
        return local_sync_penalty(params, sites, every)


@dataclass(frozen=True)
class PenalisedLaw:
    """A law with what local sync over `sites` sites costs on top, which depends on the size."""

    question: Question
    sites: int
    every: int  # 0: exact sync, no penalty

    def loss(self, params: float, tokens: float) -> float:
        loss = self.question.limited.loss(params, tokens)
        return loss * (1 + self.question.penalty(params, self.sites, self.every)) if self.every else loss


def target(question: Question, law: Loss, flops: float | None) -> Optimum:
    """Return the best (N, D) within the limits; `flops` is the budget where the question is of flops or days.

    Raises:
        UserError: the limits leave nothing that reaches what is asked.
    """
    wished = _unlimited(question, law, flops)
    params, tokens = wished.params, wished.tokens
    most_params, most_tokens = question.max_params or math.inf, question.max_tokens or math.inf
    if params <= most_params and tokens <= most_tokens:
        return wished
    if question.params is not None and params > most_params:
        raise UserError(
            f"plan.params={question.params:.3g} is more", where="plan.max_params", fix="raise the limit or lower it"
        )
    if flops is not None:
        if params > most_params:
            params, tokens = most_params, flops / 6 / most_params
        if tokens > most_tokens:
            params, tokens = min(flops / 6 / most_tokens, most_params), most_tokens
    elif question.loss is not None:
        params, tokens = _limited_for_loss(question, law, question.loss, wished)
    else:
        tokens = min(tokens, most_tokens)
    return Optimum(params, tokens, law.loss(params, tokens), question.inference_tokens)


def _unlimited(question: Question, law: Loss, flops: float | None) -> Optimum:
    ratio, inference = question.tokens_per_parameter, question.inference_tokens
    if flops is not None:
        if ratio is not None:
            return optimum.for_ratio(law, flops, ratio)
        return optimum.for_flops(law, flops, inference)
    if question.params is not None:
        if ratio is not None:
            return optimum.for_ratio(law, 6 * question.params**2 * ratio, ratio)
        return optimum.for_params(law, question.params, inference)
    assert question.loss is not None
    if ratio is None:
        return optimum.for_loss(law, question.loss, inference)
    low, high = math.log(1e9), math.log(1e40)
    for _ in range(80):
        middle = (low + high) / 2
        above = optimum.for_ratio(law, math.exp(middle), ratio).loss > question.loss
        low, high = (middle, high) if above else (low, middle)
    found = optimum.for_ratio(law, math.exp(high), ratio)
    if found.loss > question.loss * 1.0001:
        raise UserError(
            f"{question.loss:g} is out of reach at {ratio:g} tokens per parameter",
            where="plan.loss",
            fix=f"the best is {found.loss:.4f}; ask for more, or leave plan.tokens_per_parameter out",
        )
    return found


def _limited_for_loss(question: Question, law: Loss, loss: float, wished: Optimum) -> tuple[float, float]:
    """Return (N, D) on the limit that reaches the loss."""
    most_params, most_tokens = question.max_params or math.inf, question.max_tokens or math.inf
    by_params = wished.params > most_params
    fixed = most_params if by_params else most_tokens

    def reached(other: float) -> float:
        return law.loss(fixed, other) if by_params else law.loss(other, fixed)

    limit = most_tokens if by_params else most_params
    high = min(limit, 1e19)
    if reached(high) > loss:
        name = "plan.max_params" if by_params else "plan.max_tokens"
        raise UserError(
            f"{loss:g} is out of reach with {name}={fixed:.3g}",
            where="plan.loss",
            fix=f"the best is {reached(high):.4f}; without the limit it takes {wished.params:.3g} parameters on "
            f"{wished.tokens:.3g} tokens",
        )
    low = 1.0
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if reached(middle) > loss else (low, middle)
    return (fixed, high) if by_params else (high, fixed)


def beside(question: Question, law: Loss, best: Optimum, scale: float) -> Optimum:
    """Return a plan of another size that costs as much, or that reaches the loss where one is asked for.

    Raises:
        UserError: it breaks a limit, or that size cannot reach the loss.
    """
    params, tokens = best.params * scale, best.tokens / scale
    if question.loss is not None:
        _, tokens = _limited_for_loss(
            replace(question, max_params=params), law, question.loss, replace(best, params=math.inf)
        )
    if params > (question.max_params or math.inf) or tokens > (question.max_tokens or math.inf):
        raise UserError("is beyond a limit", where="plan.max_params, plan.max_tokens", fix="raise it")
    return Optimum(params, tokens, law.loss(params, tokens), question.inference_tokens)


def equal_loss_share(law: LossLaw, flops: float, penalty: float) -> float:
    """Return which share of a budget would reach, without a penalty on the loss, what it reaches with one."""
    if not penalty:
        return 1.0
    return law.flops_for_loss(law.loss(*law.optimum(flops)) * (1 + penalty)) / flops
