"""Candidates: whole plans, each with its cost; which of them is preferred, and which no other one beats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.errors import UserError
from isthmus.train.planner.cluster import Cluster
from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.predict import Prediction
from isthmus.train.planner.question import Question
from isthmus.train.planner.recipes import Recipe
from isthmus.train.planner.reliability import Reliability
from isthmus.train.planner.shape import Shape


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One whole plan. Money is in US dollars, energy in MWh."""

    cluster: Cluster  # with a link for every pair
    shape: Shape
    layout: Layout
    sync: Sync
    prediction: Prediction
    reliability: Reliability
    recipe: Recipe
    tokens: float
    steps: int
    loss: float
    penalty: float
    lost_share: float  # of the executed FLOPs, by failures
    days: float
    accelerators: int  # spares included
    compute_cost: float
    link_cost: float
    data_cost: float
    data_hours: float
    megawatt_hours: float
    effective_flops: float  # that the best size on fresh data, with exact sync, would need for the same loss

    @property
    def cost(self) -> float:
        return self.compute_cost + self.link_cost + self.data_cost

    @property
    def training_flops(self) -> float:
        return 6.0 * self.shape.params * self.tokens

    @property
    def speed(self) -> float:
        """Effective FLOPs a day: what plans with different losses and times are compared by."""
        return self.effective_flops / self.days

    @property
    def site_names(self) -> list[str]:
        return [site.name for site in self.cluster.sites]


def preferred(question: Question, found: list[Candidate]) -> list[Candidate]:
    """Order the candidates, the best first.

    Raises:
        UserError: none keeps the limits.
    """

    def within(candidate: Candidate) -> bool:
        days, cost = question.max_days or math.inf, question.max_cost or math.inf
        return candidate.days <= days * 1.001 and candidate.cost <= cost

    def order(candidate: Candidate) -> tuple[int, float]:
        slow, dear = -math.log(candidate.speed), math.log(max(candidate.cost, 1e-9) / candidate.effective_flops)
        first, second = (dear, slow) if question.prefer_cost else (slow, dear)
        # Less than half a percent is no difference: then the other one decides.
        return round(first / 0.005), second

    kept = sorted((candidate for candidate in found if within(candidate)), key=order)
    if kept:
        return kept + sorted((candidate for candidate in found if not within(candidate)), key=order)
    if question.max_days and all(candidate.days > question.max_days for candidate in found):
        soonest = min(found, key=lambda candidate: candidate.days)
        budget = soonest.training_flops * question.max_days / soonest.days
        raise UserError(
            f"the soonest plan takes {soonest.days:.1f} days",
            where=f"plan.max_days={question.max_days:g}",
            fix=f"plan.flops={budget:.2g} would fit, or use more accelerators",
        )
    cheapest = min(found, key=lambda candidate: candidate.cost)
    budget = cheapest.training_flops * (question.max_cost or math.inf) / cheapest.cost
    raise UserError(
        f"the cheapest plan costs {cheapest.cost:,.0f} dollars in {cheapest.days:.1f} days",
        where=f"plan.max_cost={question.max_cost or 0:g}",
        fix=f"plan.flops={budget:.2g} would fit",
    )


def pareto(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that no other one beats in time, cost and loss at once."""

    def beaten(one: Candidate) -> bool:
        mine = (one.days, one.cost, one.loss)
        return any(
            other is not one
            and all(a <= b for a, b in zip((other.days, other.cost, other.loss), mine, strict=True))
            and (other.days, other.cost, other.loss) != mine
            for other in found
        )

    return [candidate for candidate in found if not beaten(candidate)]
