"""The curves of the report: plain numbers, so that they can be tested without a browser."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from isthmus.train.planner.cluster import Cluster, Link
from isthmus.train.planner.laws import LAWS, LossLaw
from isthmus.train.planner.layout import Sync
from isthmus.train.planner.memory import Memory, stage_memory
from isthmus.train.planner.plan import Plan
from isthmus.train.planner.predict import Alone, with_links
from isthmus.train.planner.reliability import Reliability
from isthmus.train.planner.uncertainty import interval, samples_of

_POINTS = 61
METHODS = {
    "exact, bf16": Sync(kind="exact", wire="bf16"),
    "exact, int8": Sync(kind="exact", wire="int8"),
    "DiLoCo, H=100, fp32": Sync(kind="local", wire="fp32", every=100),
    "eager, H=30, int8": Sync(kind="local", wire="int8", every=30, overlap_steps=1),
    "streaming, H=30, int4": Sync(kind="local", wire="int4", every=30, fragments=4, overlap_steps=5),
}


@dataclass(frozen=True)
class Curve:
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def _spread(low: float, high: float) -> list[float]:
    step = (math.log(high) - math.log(low)) / (_POINTS - 1)
    return [math.exp(math.log(low) + step * place) for place in range(_POINTS)]


def _laws(plan: Plan) -> dict[str, LossLaw]:
    own = plan.question.law
    return {own.name: own, **{name: law for name, law in LAWS.items() if name != "hoffmann-3-rounded"}}


def losses_over_size(plan: Plan) -> dict[str, Curve]:
    """Return loss over parameters at the plan's compute, by law; the plan's own over its data and with its band."""
    flops, chosen = plan.chosen.training_flops, plan.chosen.shape.params
    sizes = _spread(chosen / 30, chosen * 30)
    curves = {}
    for name, law in _laws(plan).items():
        own = name == plan.question.law.name
        factor = 1 + plan.chosen.penalty if own else 1.0
        drawn = samples_of(law) if own else []
        bands = [interval([factor * s.loss(n, flops / 6 / n) for s in drawn]) for n in sizes] if drawn else []
        source = plan.question.limited if own else law
        curves[name] = Curve(
            sizes,
            [factor * source.loss(n, flops / 6 / n) for n in sizes],
            [band[0] for band in bands if band],
            [band[1] for band in bands if band],
        )
    return curves


def frontiers(plan: Plan) -> dict[str, Curve]:
    """Return the best loss over compute, by law."""
    budgets = _spread(plan.chosen.training_flops / 1e3, plan.chosen.training_flops * 1e3)
    return {
        name: Curve(budgets, [law.loss(*law.optimum(flops)) for flops in budgets]) for name, law in _laws(plan).items()
    }


def utilisations(plan: Plan) -> dict[str, Curve]:
    """Return utilisation over the bandwidth of every link in Gbit/s, by method; of two sites where the plan has one."""
    chosen = plan.chosen
    cluster = chosen.cluster
    if len(cluster.sites) < 2:
        site = cluster.sites[0]
        other = replace(site, name=f"{site.name}-2")
        link = Link(ends=(site.name, other.name), bytes_per_second=1.0)
        cluster = Cluster(sites=[site, other], links=[link])
    prediction = chosen.prediction
    seconds = prediction.step_seconds - prediction.exposed_seconds
    parts = {name: value for name, value in prediction.parts.items() if name != "cross_site"}
    alone = Alone(seconds=seconds, parts=parts, window_seconds=prediction.window_seconds, bubble=prediction.bubble)
    # Both halves of a single site's batch: the layout's own microbatches, on twice the ranks.
    layout = chosen.layout
    if len(chosen.cluster.sites) < 2:
        layout = replace(layout, global_batch=2 * layout.global_batch)
    methods = dict(METHODS)
    if chosen.sync.kind != "none":
        methods = {f"the plan: {chosen.sync.describe()}": chosen.sync, **methods}
    speeds = _spread(0.01, 10_000)
    curves = {}
    for name, sync in methods.items():
        if sync.fragments > chosen.shape.layers:
            continue
        used = []
        for gbps in speeds:
            links = [replace(link, bytes_per_second=gbps * 1e9 / 8) for link in cluster.links]
            routed = Cluster(sites=cluster.sites, links=links)
            used.append(with_links(chosen.shape, layout, routed, sync, alone).utilisation)
        curves[name] = Curve(speeds, used)
    return curves


def goodputs(kept: Reliability) -> Curve:
    """Return goodput over the minutes between checkpoints."""
    minutes = _spread(kept.interval_seconds / 60 / 30, kept.interval_seconds / 60 * 100)
    return Curve(minutes, [kept.goodput_at(60 * value) for value in minutes])


def stage_memories(plan: Plan) -> list[Memory]:
    """Return what a rank of every pipeline stage holds."""
    chosen = plan.chosen
    passes = chosen.prediction.microbatches
    return [
        stage_memory(chosen.shape, chosen.layout, chosen.sync, passes, stage) for stage in range(chosen.layout.pipeline)
    ]


def ratios(plan: Plan) -> Mapping[str, float]:
    """Return tokens per parameter by law."""
    return {entry.law: entry.tokens_per_parameter for entry in plan.opinions}
