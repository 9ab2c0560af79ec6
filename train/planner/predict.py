"""What a fixed layout will do: seconds of a step and their parts, memory of a rank, what crosses the links."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

from isthmus.errors import UserError
from isthmus.parallelism.config import ModelConfig
from isthmus.train.planner import crossing
from isthmus.train.planner.cluster import Cluster, Site
from isthmus.train.planner.compute import LayerTimes, ends_times, layer_times
from isthmus.train.planner.kernels import Device, all_reduce, gather, group_of, send
from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.memory import USABLE, Memory, memory, rank_params
from isthmus.train.planner.shape import Shape, shape_of

_ADAM_BYTES = 26  # per owned parameter: reads and writes three fp32 numbers, writes the 2 bytes that are trained with
_SPEED_SPREAD = 0.02  # standard deviation of the speed of equal accelerators


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Of one optimizer step of all sites together.

    `parts` add up to `step_seconds`: compute (products, attention, elementwise), host (where launches are slower than
    kernels), tensor (with context and expert communication), pipeline (sends), bubble, data (exposed reductions),
    optimizer, straggler, cross_site. `bubble` is idle / busy of the pipeline, as the papers count it.
    """

    step_seconds: float
    parts: Mapping[str, float]
    tokens_per_second: float
    tflops_per_accelerator: float  # of the model's FLOPs (PaLM's count)
    hardware_tflops_per_accelerator: float  # with what is recomputed
    mfu: float
    memory: Memory
    memory_limit_bytes: float
    bubble: float
    utilisation: float  # step without links / step
    exposed_seconds: float
    link_seconds: float
    sent_bytes: float
    link_price: float  # US dollars a step
    window_seconds: float
    microbatches: int

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.memory_limit_bytes


@dataclass(frozen=True, kw_only=True)
class Alone:
    """A step of a site without the links: seconds, their parts, the last backward pass, idle / busy of the pipeline."""

    seconds: float
    parts: Mapping[str, float]
    window_seconds: float
    bubble: float


def predict(model: Shape | ModelConfig, layout: Layout, cluster: Cluster, sync: Sync | None = None) -> Prediction:
    """Return what this layout does on this cluster, every site with the same layout; nothing is searched.

    Raises:
        UserError: the layout does not fit the model's shape, a site's accelerators, the links or the batch.
    """
    shape = shape_of(model) if isinstance(model, ModelConfig) else model
    sync = sync or Sync()
    check(shape, layout, cluster, sync)
    routed = cluster.routed() if len(cluster.sites) > 1 else cluster
    return with_links(shape, layout, routed, sync, step_alone(shape, layout, cluster))


def step_alone(shape: Shape, layout: Layout, cluster: Cluster) -> Alone:
    """Return the step of the slowest site; of equal sites one is enough."""
    sites = len(cluster.sites)
    kinds = {(site.accelerator, site.measured, site.slowdown): site for site in cluster.sites}
    return max((_site_step(shape, layout, site, sites) for site in kinds.values()), key=lambda alone: alone.seconds)


def with_links(shape: Shape, layout: Layout, routed: Cluster, sync: Sync, alone: Alone) -> Prediction:
    """Return the whole step: `alone`, and what waits for the links of a cluster that has one for every pair."""
    params = sum(rank_params(shape, layout))
    owned = params / (layout.data * layout.context if layout.distributed_optimizer else 1)
    crossed = crossing.crossing(
        shape.params,
        sync,
        routed,
        step_seconds=alone.seconds,
        window_seconds=alone.window_seconds,
        buckets=layout.buckets(params),
        lanes=layout.ranks,
        codec_seconds=codec_seconds(_device(routed.sites[0], layout), owned, sync, len(routed.sites)),
    )
    return _assemble(shape, layout, routed, sync, alone, crossed)


def codec_seconds(device: Device, owned: float, sync: Sync, sites: int) -> float:
    """Return the seconds of packing, encoding, decoding and adding a rank's numbers: so many passes over memory."""
    passes = (8 if sync.wire == "fp32" else 24) + 8 * sites
    return device.elementwise(owned * passes)


def check(shape: Shape, layout: Layout, cluster: Cluster, sync: Sync) -> None:
    """Refuse what cannot run.

    Raises:
        UserError: with the closest thing that would.
    """
    for what, size in (("attention heads", shape.heads), ("inner width", shape.ffn), ("vocabulary", shape.vocabulary)):
        if size % layout.tensor:
            fix = f"the nearest divisor is {_nearest_divisor(size, layout.tensor)}"
            raise UserError(f"{layout.tensor} does not divide the {what} of {size}", where="parallel.tensor", fix=fix)
    if shape.groups % layout.tensor and layout.tensor % shape.groups:
        raise UserError(
            f"{layout.tensor} does not divide the {shape.groups} key/value groups",
            where="parallel.tensor",
            fix=f"the nearest divisor is {_nearest_divisor(shape.groups, layout.tensor)}",
        )
    stages = layout.pipeline * layout.virtual_pipeline
    if shape.layers % stages:
        raise UserError(
            f"{stages} stages and chunks do not divide the {shape.layers} layers",
            where="parallel.pipeline",
            fix=f"the nearest divisor is {_nearest_divisor(shape.layers, stages)}",
        )
    if layout.expert > 1 and (not shape.experts or shape.experts % layout.expert):
        fix = (
            f"the nearest divisor is {_nearest_divisor(shape.experts, layout.expert)}"
            if shape.experts
            else "leave it 1"
        )
        raise UserError(f"{layout.expert} does not divide {shape.experts} experts", where="parallel.expert", fix=fix)
    if (layout.data * layout.context) % layout.expert:
        raise UserError(
            f"{layout.expert} does not divide data x context = {layout.data} x {layout.context}",
            where="parallel.expert",
            fix=f"the nearest divisor is {_nearest_divisor(layout.data * layout.context, layout.expert)}",
        )
    if layout.context > 1 and layout.sequence_length % (2 * layout.context):
        raise UserError(
            f"2 x {layout.context} does not divide the {layout.sequence_length} tokens of a sequence",
            where="parallel.context",
            fix=f"the nearest that works is {_nearest_divisor(layout.sequence_length // 2, layout.context)}",
        )
    for site in cluster.sites:
        if layout.ranks > site.count:
            raise UserError(
                f"{layout.ranks} ranks on {site.count} accelerators",
                where=f"cluster.sites.{site.name}",
                fix=f"use at most {site.count} ranks, or give the site {layout.ranks} accelerators",
            )
    if len(cluster.sites) > 1 and sync.kind == "none":
        raise UserError(
            f"{len(cluster.sites)} sites would each train alone", where="sync=none", fix="use sync=exact or sync=local"
        )
    if len(cluster.sites) == 1 and sync.kind != "none":
        raise UserError("there is one site", where=f"sync={sync.kind}", fix="use sync=none, or give a second one")
    microbatches = layout.microbatches(len(cluster.sites))
    if layout.virtual_pipeline > 1 and microbatches % layout.pipeline:
        raise UserError(
            f"the interleaved schedule needs a multiple of {layout.pipeline} microbatches, these are {microbatches}",
            where="train.global_batch",
            fix=f"the nearest is {max(1, round(microbatches / layout.pipeline)) * layout.pipeline}",
        )


def _nearest_divisor(size: int, wished: int) -> int:
    return min((d for d in range(1, size + 1) if size % d == 0), key=lambda d: abs(math.log(d / wished)))


def _device(site: Site, layout: Layout) -> Device:
    return Device(site.accelerator, site.measured, layout.precision)


def _site_step(shape: Shape, layout: Layout, site: Site, sites: int) -> Alone:
    device = _device(site, layout)
    node = site.accelerator.node_size
    times = layer_times(shape, layout, device)
    embedding, logits_forward, logits_backward = ends_times(shape, layout, device)
    m, p, v = layout.microbatches(sites), layout.pipeline, layout.virtual_pipeline
    per_stage = shape.layers / p * times.seconds
    ends = embedding + logits_forward + logits_backward
    whole = p * per_stage + ends  # one microbatch through all stages
    fullest = per_stage + (ends if p == 1 else max(embedding, logits_forward + logits_backward))
    # The fullest stage is busy for all microbatches; filling and draining takes the others' time once, or 1/v of it.
    bubble_seconds = (whole - fullest) / v
    sends = _sends(shape, layout, device, node) * (m + p - 1) if p > 1 else 0.0
    backward = (shape.layers / p) * (times.backward.seconds + times.recompute) + (logits_backward if p == 1 else 0.0)
    reductions = _reductions(shape, layout, device, backward)
    dense, experts = rank_params(shape, layout)
    data = layout.data * layout.context
    owned = dense / data + experts / max(1.0, data / layout.expert) if layout.distributed_optimizer else dense + experts
    # Gradients are read for their norm and again for the step.
    optimizer = device.elementwise(owned * (_ADAM_BYTES + 2 * layout.gradient_bytes)) + device.constants.step_seconds
    busy = m * fullest
    straggler = (site.slowdown + expected_lag(layout.ranks * sites)) * (busy + bubble_seconds)
    layers = m * shape.layers / p
    parts = {
        **{name: layers * seconds for name, seconds in _shares(times).items()},
        "bubble": bubble_seconds,
        "pipeline": sends,
        "data": reductions,
        "optimizer": optimizer,
        "straggler": straggler,
    }
    parts["compute"] += m * (fullest - per_stage)
    return Alone(seconds=sum(parts.values()), parts=parts, window_seconds=backward, bubble=bubble_seconds / busy)


def expected_lag(ranks: int) -> float:
    """Return how much longer the slowest of so many accelerators takes than the mean one, as a share.

    All wait for it at every step. Speeds of equal accelerators spread by about 8% from end to end (Sinha et al., SC'22,
    arXiv 2208.11035), taken as four standard deviations of a normal; the expected largest of n is by Blom's formula.
    """
    if ranks < 2:
        return 0.0
    return _SPEED_SPREAD * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def _shares(times: LayerTimes) -> dict[str, float]:
    """Split a layer's seconds into compute, tensor communication and waiting for the host."""
    passes = (times.forward, times.backward)
    tensor = sum(one.communication for one in passes)
    host = sum(one.seconds - one.device for one in passes)
    return {"compute": times.seconds - tensor - host, "tensor": tensor, "host": host}


def _sends(shape: Shape, layout: Layout, device: Device, node: int) -> float:
    """Return the seconds of a microbatch's activations and gradients to the next stage and back, as far as they show.

    Each tensor rank sends its part and the receivers gather them (arXiv 2104.04473, section 4.1). Interleaved
    schedules send v times, and hide it where communication overlaps.
    """
    tokens = layout.micro_batch * layout.sequence_length / layout.context
    message = tokens * shape.hidden * device.number_bytes
    stage_ranks = layout.tensor * layout.context * layout.data
    across = stage_ranks >= node
    one = send(device, across_nodes=across, message_bytes=message / layout.tensor)
    if layout.tensor > 1 and not layout.sequence:
        one += gather(device, group_of(layout.tensor, 1, node), message)
    v = layout.virtual_pipeline
    shown = 0.25 if layout.overlap and v > 1 else 1.0
    return 2 * v * one * shown


def _reductions(shape: Shape, layout: Layout, device: Device, backward: float) -> float:
    """Return the exposed seconds of reducing gradients, and of gathering parameters with a distributed optimizer."""
    node = device.sheet.node_size
    dense, experts = rank_params(shape, layout)
    data = layout.data * layout.context
    group = group_of(data, layout.tensor, node)
    expert_group = group_of(max(1, data // layout.expert), layout.tensor * layout.expert, node)
    if layout.distributed_optimizer:
        reduce = gather(device, group, dense * layout.gradient_bytes)
        reduce += gather(device, expert_group, experts * layout.gradient_bytes)
        collect = gather(device, group, dense * device.number_bytes)
        collect += gather(device, expert_group, experts * device.number_bytes)
    else:
        reduce = all_reduce(device, group, dense * layout.gradient_bytes)
        reduce += all_reduce(device, expert_group, experts * layout.gradient_bytes)
        collect = 0.0
    ends = 0.0
    if shape.tied and layout.pipeline > 1:  # first and last stage add their gradients of the embedding
        message = shape.hidden * shape.vocabulary / layout.tensor * layout.gradient_bytes
        ends = send(device, across_nodes=layout.ranks > node, message_bytes=2 * message)
    if not layout.overlap:
        return reduce + collect + ends
    buckets = layout.buckets(dense + experts)
    shown = max(reduce / buckets, reduce - backward * (1 - 1 / buckets))
    # Parameters are gathered beside the next forward pass, half as long as the backward pass.
    shown += max(collect / buckets, collect - 0.5 * backward)
    return shown + ends


def _assemble(
    shape: Shape, layout: Layout, cluster: Cluster, sync: Sync, alone: Alone, crossed: crossing.Crossing
) -> Prediction:
    step = alone.seconds + crossed.exposed_seconds
    ranks = layout.ranks * len(cluster.sites)
    tokens = layout.global_batch * layout.sequence_length
    model_flops = shape.model_flops_per_token(layout.sequence_length) * tokens
    again = {
        "none": 0.0,
        "selective": 4.0 * shape.layers * shape.attention_width * layout.sequence_length * tokens,
        "full": (model_flops - 6.0 * shape.hidden * shape.vocabulary * tokens) / 3,
    }[layout.recompute]
    peak = min(site.accelerator.peak_flops(layout.precision) for site in cluster.sites)
    per_rank = model_flops / step / ranks
    return Prediction(
        step_seconds=step,
        parts={**alone.parts, "cross_site": crossed.exposed_seconds},
        tokens_per_second=tokens / step,
        tflops_per_accelerator=per_rank / 1e12,
        hardware_tflops_per_accelerator=(model_flops + again) / step / ranks / 1e12,
        mfu=per_rank / peak,
        memory=memory(shape, layout, sync, layout.microbatches(len(cluster.sites))),
        memory_limit_bytes=USABLE * min(site.accelerator.memory_bytes for site in cluster.sites),
        bubble=alone.bubble,
        utilisation=alone.seconds / step,
        exposed_seconds=crossed.exposed_seconds,
        link_seconds=crossed.link_seconds,
        sent_bytes=crossed.sent_bytes,
        link_price=crossed.price,
        window_seconds=alone.window_seconds,
        microbatches=layout.microbatches(len(cluster.sites)),
    )
