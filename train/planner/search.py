"""The search: which sites, which shape, which layout and which sync; every candidate is a whole plan with its cost."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence

from isthmus.errors import UserError
from isthmus.train.planner.candidates import Candidate, preferred
from isthmus.train.planner.cluster import Cluster
from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.layouts import Room, Timed, fastest
from isthmus.train.planner.memory import USABLE, checkpoint_bytes, memory, rank_params
from isthmus.train.planner.optimum import Optimum
from isthmus.train.planner.predict import Prediction, with_links
from isthmus.train.planner.question import PenalisedLaw, Question, beside, equal_loss_share, target
from isthmus.train.planner.recipes import Recipe, step_law
from isthmus.train.planner.reliability import reliability, spares
from isthmus.train.planner.shape import Shape, shapes_for

_SHAPES = 8  # tried first; then as many as _LATER_SHAPES
_LATER_SHAPES = 3
_LAYOUTS = 12
_REFINED = 10
_NEAR = 3
_SIZES_BESIDE = (0.5, 2.0)
_ROUNDS = 3
_EXACT_WIRES = ("fp32", "bf16", "int8")
_LOCAL_WIRES = ("fp32", "int8", "int4")
_EVERY = (10, 30, 100, 300)
_STREAMS = ((1, 0), (1, 1), (4, 5))  # (fragments, overlap): DiLoCo, eager, streaming


def search(question: Question, cluster: Cluster) -> list[Candidate]:
    """Return candidates within the limits, the preferred first.

    Raises:
        UserError: no layout fits, or no plan keeps the limits; says what comes closest.
    """
    rough: list[tuple[float, Cluster, Sync]] = []
    refusal: UserError | None = None
    for subset in subsets(cluster):
        try:
            rough += _rough(question, subset)
        except UserError as error:
            refusal = refusal or error
    if not rough:
        assert refusal is not None
        raise refusal
    rough.sort(key=lambda entry: -entry[0])
    found = []
    for subset, sync in _varied(rough):
        try:
            found.append(refine(question, subset, sync))
        except UserError as error:
            refusal = refusal or error
    if not found:
        assert refusal is not None
        raise refusal
    best = preferred(question, found)[0]
    if question.params is None and question.tokens_per_parameter is None:
        for scale in _SIZES_BESIDE:
            with contextlib.suppress(UserError):  # a size that does not fit is no alternative
                found.append(refine(question, best.cluster, best.sync, scale=scale))
    # They are shown beside the best one: what makes its size the best (inference, say) is not in the order.
    return [best, *(entry for entry in preferred(question, found) if entry is not best)]


def subsets(cluster: Cluster) -> Iterator[Cluster]:
    """Yield sets of sites worth trying, with a link for every pair: all, those of a size and up, each alone.

    All sites run the same layout, so that the smallest sets the ranks of each: leaving small or badly linked ones out
    can be faster. From the full set on, the site with the narrowest ways is dropped again and again.
    """
    seen = set()
    names = [site.name for site in cluster.sites]
    tries: list[list[str]] = []
    for count in sorted({site.count for site in cluster.sites}):
        tries.append([site.name for site in cluster.sites if site.count >= count])
    left = list(names)
    while len(left) > 2:
        ways = {
            name: sum(
                link.bytes_per_second for link in cluster.links if name in link.ends and set(link.ends) <= set(left)
            )
            for name in left
        }
        left = [name for name in left if name != min(left, key=lambda name: ways[name])]
        tries.append(list(left))
    tries += [[name] for name in names]
    for chosen in tries:
        part = cluster.restricted(chosen)
        if tuple(chosen) in seen or len(part.components()) > 1:
            continue
        seen.add(tuple(chosen))
        yield part.routed()


def sync_options(sites: int) -> list[Sync]:
    """Return the ways to keep so many sites one model. Lossy exact wires end at int8: fewer bits are unpublished."""
    if sites == 1:
        return [Sync()]
    exact = [Sync(kind="exact", wire=wire) for wire in _EXACT_WIRES]
    local = [
        Sync(kind="local", wire=wire, every=every, fragments=fragments, overlap_steps=overlap)
        for every, (fragments, overlap), wire in itertools.product(_EVERY, _STREAMS, _LOCAL_WIRES)
    ]
    return exact + local


def _rough(question: Question, subset: Cluster) -> list[tuple[float, Cluster, Sync]]:
    """Rate every sync by effective FLOPs a second (or a dollar), at one (N, D) for all."""
    flops = question.flops or _guess(question, subset)
    best = target(question, PenalisedLaw(question, len(subset.sites), 0), flops)
    recipe = step_law(best.params, best.tokens)
    shape, timed = _layouts(question, subset, best, recipe, _LATER_SHAPES)
    price = sum(timed[0].layout.ranks * site.price for site in subset.sites) / 3600
    rated = []
    for sync in sync_options(len(subset.sites)):
        prediction = _with_sync(shape, timed, subset, sync)
        if prediction is None:
            continue
        penalty = _penalty(question, shape, len(subset.sites), sync)
        share = equal_loss_share(question.law, best.training_flops, penalty)
        rate = share * prediction[1].tokens_per_second * shape.params
        if question.prefer_cost:
            rate /= price + prediction[1].link_price / prediction[1].step_seconds
        rated.append((rate, subset, sync))
    return rated


def _varied(rough: Sequence[tuple[float, Cluster, Sync]]) -> list[tuple[Cluster, Sync]]:
    """Return, of what is sorted by speed, the best of every set of sites and kind of sync, and a few near the best."""
    chosen: list[tuple[Cluster, Sync]] = []
    kinds: set[tuple[object, ...]] = set()
    near = 0
    for _, subset, sync in rough:
        kind = (*(site.name for site in subset.sites), sync.kind)
        if kind not in kinds or near < _NEAR:
            near += kind in kinds
            kinds.add(kind)
            chosen.append((subset, sync))
    return chosen[:_REFINED]


def refine(question: Question, subset: Cluster, sync: Sync, *, scale: float = 1.0) -> Candidate:
    """Return the plan for these sites and this sync: what is lost lowers the effective compute, which moves (N, D),
    which changes the layout; after a few rounds it stands.

    Args:
        scale: of the parameters, for plans beside the best one: a smaller model on more tokens at equal compute, or at
            equal loss where a loss is asked for.

    Raises:
        UserError: nothing fits into memory.
    """
    sites = len(subset.sites)
    law = PenalisedLaw(question, sites, sync.every if sync.kind == "local" else 0)
    flops = question.flops or _guess(question, subset)
    useful = 1.0
    candidate: Candidate | None = None
    for number in range(_ROUNDS):
        budget = None if flops is None else flops * useful
        best = target(question, law, budget)
        if scale != 1.0:
            best = beside(question, law, best, scale)
        recipe = step_law(best.params, best.tokens)
        last = number == _ROUNDS - 1 or flops is None
        shape, timed = _layouts(question, subset, best, recipe, _SHAPES if last else _LATER_SHAPES)
        choice = _with_sync(shape, timed, subset, sync)
        if choice is None:
            raise UserError("sync leaves no layout enough memory", where="cluster.sites", fix="use more accelerators")
        tokens = best.tokens if budget is None else min(budget / 6 / shape.params, question.max_tokens or math.inf)
        candidate = _whole(question, subset, sync, shape, choice[0], choice[1], tokens, recipe)
        if question.days is not None:
            flops = candidate.training_flops * question.days / candidate.days
        elif question.flops is not None:
            useful = 1.0 - candidate.lost_share
        else:
            break
    assert candidate is not None
    if question.days is not None:  # the last rounding, so that the days are those asked for
        tokens = min(candidate.tokens * question.days / candidate.days, question.max_tokens or math.inf)
        made = candidate.shape, candidate.layout, candidate.prediction
        candidate = _whole(question, subset, sync, *made, tokens, candidate.recipe)
    return candidate


def _guess(question: Question, subset: Cluster) -> float | None:
    """Return the FLOPs of so many days at 40% of the peak, to begin with."""
    if question.days is None:
        return None
    count = min(site.count for site in subset.sites)
    peak = min(site.accelerator.peak_flops(question.precision) for site in subset.sites)
    return 0.4 * peak * count * len(subset.sites) * question.days * 86_400


def _penalty(question: Question, shape: Shape, sites: int, sync: Sync) -> float:
    return question.penalty(shape.params, sites, sync.every) if sync.kind == "local" else 0.0


def _layouts(
    question: Question, subset: Cluster, best: Optimum, recipe: Recipe, tries: int
) -> tuple[Shape, list[Timed]]:
    """Return the shape near N that trains fastest per parameter, with its layouts."""
    sites = len(subset.sites)
    smallest = min(subset.sites, key=lambda site: site.count)
    kept = _site_spares(question, subset)
    wished = question.global_batch or max(float(sites), recipe.batch_tokens / question.sequence_length)
    room = Room(
        ranks=smallest.count - kept,
        spares=kept,
        sites=sites,
        batch=wished,
        fixed_batch=question.global_batch,
        sequence_length=question.sequence_length,
        precision=question.precision,
        node_size=min(site.accelerator.node_size for site in subset.sites),
        memory_bytes=min(site.accelerator.memory_bytes for site in subset.sites),
        gpu=smallest.accelerator.kind == "gpu",
    )
    found: list[tuple[float, Shape, list[Timed]]] = []
    refusal: UserError | None = None
    for shape in itertools.islice(shapes_for(best.params, question.vocabulary), tries):
        if question.max_params and shape.params > question.max_params * 1.03:
            continue
        try:
            timed = fastest(shape, room, subset, keep=_LAYOUTS)
        except UserError as error:
            refusal = refusal or error
            continue
        # Close to the wished size comes before the last percent of speed.
        off = abs(math.log(shape.params / best.params))
        found.append((timed[0].tokens_per_second * shape.params * math.exp(-off), shape, timed))
    if not found:
        raise refusal or UserError(
            f"no shape has at most {question.max_params:.3g} parameters",
            where="plan.max_params",
            fix="raise it or lower plan.vocab_size",
        )
    _, shape, timed = max(found, key=lambda entry: entry[0])
    return shape, timed


def _site_spares(question: Question, subset: Cluster) -> int:
    """Return the accelerators of one site to keep in reserve: none where that is more than a tenth of them."""
    smallest = min(subset.sites, key=lambda site: site.count)
    expected = smallest.count / smallest.hours_between_failures * question.repair_hours
    kept = spares(expected, smallest.accelerator.node_size)
    return kept if kept <= smallest.count // 10 else 0


def _with_sync(shape: Shape, timed: Sequence[Timed], subset: Cluster, sync: Sync) -> tuple[Layout, Prediction] | None:
    """Return the best of the layouts that has room for the sync, or None."""
    sites = len(subset.sites)
    limit = USABLE * min(site.accelerator.memory_bytes for site in subset.sites)
    best: tuple[Layout, Prediction] | None = None
    if sync.kind == "local" and (sync.fragments > shape.layers or sync.overlap_steps >= sync.every):
        return None
    for entry in timed:
        layout = entry.layout
        if sync.kind == "local" and shape.tied and layout.pipeline > 1 and sync.wire != "fp32":
            continue  # refused by parallelism/sites/validate.py
        if memory(shape, layout, sync, layout.microbatches(sites)).total > limit:
            continue
        prediction = with_links(shape, layout, subset, sync, entry.alone)
        if best is None or prediction.tokens_per_second > best[1].tokens_per_second:
            best = layout, prediction
    return best


def _whole(
    question: Question,
    subset: Cluster,
    sync: Sync,
    shape: Shape,
    layout: Layout,
    prediction: Prediction,
    tokens: float,
    recipe: Recipe,
) -> Candidate:
    sites = len(subset.sites)
    spare = _site_spares(question, subset)
    failures = sum(layout.ranks / site.hours_between_failures for site in subset.sites)
    data = layout.data * layout.context
    kept = reliability(
        failures_per_hour=failures,
        rank_state_bytes=12.0 * sum(rank_params(shape, layout)) / data,
        checkpoint_bytes=checkpoint_bytes(shape),
        storage_bytes_per_second=min(site.storage_bytes_per_second for site in subset.sites),
        restart_seconds=question.restart_seconds,
        repair_hours=question.repair_hours,
        node_size=subset.sites[0].accelerator.node_size,
    )
    steps = max(1, math.ceil(tokens / (layout.global_batch * layout.sequence_length)))
    seconds = steps * prediction.step_seconds / kept.goodput
    hours = seconds / 3600
    used = layout.ranks + spare
    stored = sum(question.unique_tokens.values()) if question.unique_tokens else tokens
    copied = min(stored, tokens) * question.bytes_per_token
    data_cost, data_hours = _copying(subset, copied)
    penalty = _penalty(question, shape, sites, sync)
    loss = question.limited.loss(shape.params, tokens) * (1 + penalty)
    lost = (kept.interval_seconds / 2 + kept.write_seconds) / (kept.hours_between_failures * 3600)
    return Candidate(
        cluster=subset,
        shape=shape,
        layout=layout,
        sync=sync,
        prediction=prediction,
        reliability=kept,
        recipe=recipe,
        tokens=tokens,
        steps=steps,
        loss=loss,
        penalty=penalty,
        lost_share=min(0.9, lost),
        days=seconds / 86_400,
        accelerators=used * sites,
        compute_cost=sum(used * site.price for site in subset.sites) * hours,
        link_cost=prediction.link_price * steps,
        data_cost=data_cost,
        data_hours=data_hours,
        megawatt_hours=sum(used * site.accelerator.watts for site in subset.sites)
        * hours
        * question.power_overhead
        / 1e6,
        effective_flops=question.law.flops_for_loss(loss),
    )


def _copying(subset: Cluster, copied_bytes: float) -> tuple[float, float]:
    """Return dollars and hours of copying the data from the best-linked site to all others, one copy over each way."""
    if len(subset.sites) < 2:
        return 0.0, 0.0

    def cost(hub: str) -> tuple[float, float]:
        ways = [link for link in subset.links if hub in link.ends]
        hours = max(copied_bytes / link.bytes_per_second for link in ways) / 3600
        return sum(link.price_per_gigabyte for link in ways) * copied_bytes / 1e9, hours

    return min(cost(site.name) for site in subset.sites)
