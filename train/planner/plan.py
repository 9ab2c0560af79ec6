"""The answer: the chosen plan, the ones near it, what every law says, and on what it all rests."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isthmus.train.planner import recipes, repetition, uncertainty
from isthmus.train.planner.candidates import Candidate, pareto
from isthmus.train.planner.cluster import HOURS_BETWEEN_FAILURES, Cluster
from isthmus.train.planner.memory import USABLE
from isthmus.train.planner.predict import Prediction
from isthmus.train.planner.question import Question
from isthmus.train.planner.recipes import Recipe
from isthmus.train.planner.search import search
from isthmus.train.planner.uncertainty import Opinion


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """The same budget on another size: what the choice is worth."""

    params: float
    tokens: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    question: Question
    chosen: Candidate
    alternatives: Sequence[Candidate]
    front: Sequence[Candidate]  # of time, cost and loss
    neighbours: Sequence[Neighbour]
    opinions: Sequence[Opinion]
    loss_interval: tuple[float, float] | None
    params_interval: tuple[float, float] | None
    mixture: Mapping[str, tuple[float, float]]  # source: (share, epochs)
    recipe_alternatives: Mapping[str, Recipe]
    warnings: Sequence[str]
    assumptions: Sequence[str]

    @property
    def epochs(self) -> float:
        return max((epochs for _, epochs in self.mixture.values()), default=0.0)


def make_plan(question: Question, cluster: Cluster) -> Plan:
    """Search, and put together what a reader needs to believe or doubt the result.

    Raises:
        UserError: nothing fits, or no plan keeps the limits.
    """
    found = search(question, cluster)
    chosen = found[0]
    flops = chosen.training_flops
    own = next((entry for entry in uncertainty.opinions(flops, question.law) if entry.law == question.law.name), None)
    limited = question.limited
    return Plan(
        question=question,
        chosen=chosen,
        alternatives=found[1:],
        front=pareto(found),
        neighbours=[_neighbour(question, chosen, factor) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)],
        opinions=uncertainty.opinions(flops, question.law),
        loss_interval=uncertainty.loss_interval(limited, chosen.shape.params, chosen.tokens, 1 + chosen.penalty),
        params_interval=own.params_interval if own else None,
        mixture={
            name: (read / chosen.tokens, read / question.unique_tokens[name])
            for name, read in limited.read(chosen.tokens).items()
        },
        recipe_alternatives=_recipes(chosen),
        warnings=_warnings(question, chosen),
        assumptions=_assumptions(question, chosen),
    )


def _recipes(chosen: Candidate) -> dict[str, Recipe]:
    found = {"DeepSeek": recipes.deepseek(chosen.training_flops)}
    if chosen.sync.kind == "local":
        found["DiLoCo"] = recipes.diloco(chosen.shape.params, len(chosen.cluster.sites))
    return found


def _neighbour(question: Question, chosen: Candidate, factor: float) -> Neighbour:
    params = chosen.shape.params * factor
    tokens = chosen.tokens / factor
    return Neighbour(params=params, tokens=tokens, loss=question.limited.loss(params, tokens) * (1 + chosen.penalty))


def _warnings(question: Question, chosen: Candidate) -> list[str]:
    found = []
    if note := uncertainty.extrapolation_note(question.law, chosen.training_flops):
        found.append(note)
    sites = len(chosen.cluster.sites)
    if chosen.sync.kind == "local" and question.sync_penalty is None:
        if recipes.is_extrapolated(chosen.shape.params, sites):
            size = f"{chosen.shape.params:.3g} parameters and {sites} sites"
            found.append(f"the cost of local sync in loss is extrapolated to {size}")
        ratio = chosen.tokens / chosen.shape.params
        if not 10 <= ratio <= 40:
            found.append(f"the cost of local sync was measured at 20 tokens per parameter, this plan has {ratio:.3g}")
    if chosen.tokens > (unique := sum(question.unique_tokens.values())) > 0:
        found.append(f"data repeat: {chosen.tokens:.3g} tokens are read of {unique:.3g}")
    batch = chosen.layout.global_batch * chosen.layout.sequence_length
    if not 0.5 <= batch / chosen.recipe.batch_tokens <= 2.0:
        found.append(f"the batch of {batch:.3g} tokens is far from the rule's {chosen.recipe.batch_tokens:.3g}")
    if chosen.reliability.goodput < 0.9:
        found.append(f"failures leave {chosen.reliability.goodput:.0%} of the time")
    return found


def _assumptions(question: Question, chosen: Candidate) -> list[str]:
    sites = chosen.cluster.sites
    found = [
        f"loss: {question.law.source}; on the scale of its own data and tokenizer",
        "compute: 6 FLOPs per parameter and token (arXiv 2001.08361); attention is in the times, not in the law",
        f"learning rate and batch: {recipes.STEP_LAW}",
    ]
    if question.unique_tokens:
        found.append(f"repetition: {repetition.SOURCE}; tokens of several sources add up (assumption)")
    if question.inference_tokens:
        found.append("inference: 2 FLOPs per parameter and token, least total (Sardana et al., arXiv 2401.00448)")
    if chosen.sync.kind == "local":
        measured = question.sync_penalty is not None
        found.append(
            "local sync's loss: plan.sync_penalty"
            if measured
            else f"local sync's loss: {recipes.DILOCO}; {recipes.STREAMING}; no law in print links H and tokens per "
            "parameter; int8 and int4 pseudo-gradients cost nothing more (arXiv 2501.18512)"
        )
    for name in dict.fromkeys(site.accelerator.name for site in sites):
        site = next(site for site in sites if site.accelerator.name == name)
        found.append(f"speed of {name}: {site.measured.source}")
    found += [
        "slowest accelerator: speeds spread by 8% from end to end (arXiv 2208.11035)",
        f"memory: {USABLE:.0%} of it can be used",
    ]
    if len(sites) > 1:
        carried = min(site.measured.wan_efficiency for site in sites)
        found.append(f"links: {carried:.0%} of their bandwidth carries payload; pairs without one go the widest way")
    if any(site.hours_between_failures == HOURS_BETWEEN_FAILURES for site in sites):
        found.append("failures: one per 50,700 accelerator hours (Llama 3, arXiv 2407.21783); any one stops all sites")
    found.append("checkpoint interval: Daly 2006, asynchronous saves; each site writes a copy of its own")
    if any(site.price_per_hour is None for site in sites):
        found.append("prices of accelerators that no one gave: round figures of 2025, not offers")
    return found


def summary(plan: Plan) -> dict[str, Any]:
    """Return the plan as nested plain values, for JSON."""
    chosen = plan.chosen
    return {
        "chosen": candidate_summary(chosen),
        "loss_interval_95": plan.loss_interval,
        "params_interval_95": plan.params_interval,
        "alternatives": [candidate_summary(entry) for entry in plan.alternatives],
        "pareto": [candidate_summary(entry) for entry in plan.front],
        "same_compute": [asdict(entry) for entry in plan.neighbours],
        "laws": [{**asdict(entry), "tokens_per_parameter": entry.tokens_per_parameter} for entry in plan.opinions],
        "mixture": {name: {"share": share, "epochs": epochs} for name, (share, epochs) in plan.mixture.items()},
        "recipes": {"used": asdict(chosen.recipe), **{k: asdict(v) for k, v in plan.recipe_alternatives.items()}},
        "warnings": list(plan.warnings),
        "assumptions": list(plan.assumptions),
    }


def candidate_summary(candidate: Candidate) -> dict[str, Any]:
    return {
        "params": candidate.shape.params,
        "tokens": candidate.tokens,
        "tokens_per_parameter": candidate.tokens / candidate.shape.params,
        "training_flops": candidate.training_flops,
        "effective_flops": candidate.effective_flops,
        "loss": candidate.loss,
        "sync_penalty": candidate.penalty,
        "steps": candidate.steps,
        "days": candidate.days,
        "cost_dollars": candidate.cost,
        "compute_dollars": candidate.compute_cost,
        "link_dollars": candidate.link_cost,
        "data_copy_dollars": candidate.data_cost,
        "data_copy_hours": candidate.data_hours,
        "megawatt_hours": candidate.megawatt_hours,
        "accelerators": candidate.accelerators,
        "spares": candidate.reliability.spares,
        "sites": candidate.site_names,
        "model": asdict(candidate.shape),
        "layout": asdict(candidate.layout),
        "sync": {**asdict(candidate.sync), "bits": candidate.sync.bits},
        "learning_rate": candidate.recipe.learning_rate,
        "checkpoint_every_steps": checkpoint_steps(candidate),
        "reliability": asdict(candidate.reliability),
        "prediction": prediction_summary(candidate.prediction),
    }


def prediction_summary(prediction: Prediction) -> dict[str, Any]:
    memory = {**asdict(prediction.memory), "total": prediction.memory.total}
    return {
        "step_seconds": prediction.step_seconds,
        "tokens_per_second": prediction.tokens_per_second,
        "tflops_per_accelerator": prediction.tflops_per_accelerator,
        "hardware_tflops_per_accelerator": prediction.hardware_tflops_per_accelerator,
        "mfu": prediction.mfu,
        "bubble": prediction.bubble,
        "utilisation": prediction.utilisation,
        "exposed_cross_site_seconds": prediction.exposed_seconds,
        "link_seconds": prediction.link_seconds,
        "sent_bytes": prediction.sent_bytes,
        "link_dollars": prediction.link_price,
        "microbatches": prediction.microbatches,
        "parts_seconds": dict(prediction.parts),
        "memory_bytes": memory,
        "memory_limit_bytes": prediction.memory_limit_bytes,
        "fits": prediction.fits,
    }


def checkpoint_steps(candidate: Candidate) -> int:
    """Return the steps between checkpoints, for `checkpoint.every_steps`."""
    return max(1, round(candidate.reliability.interval_seconds / candidate.prediction.step_seconds))
