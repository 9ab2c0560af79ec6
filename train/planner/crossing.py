"""What the links between sites cost a step: bytes, seconds on the link, and the seconds that nothing hides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isthmus.train.planner.cluster import Cluster, Link
from isthmus.train.planner.layout import Sync

_STREAMS = 4  # lane.streams
_FIRST_WINDOW_BYTES = 14_480  # ten segments (RFC 6928)
_LEAST_TIMER_SECONDS = 0.2  # Linux' least retransmission timer
HIDING_SHARE = 2 / 3  # of a step is backward pass, idealised


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Per optimizer step, on average. `exposed_seconds` is what a step waits; `sent_bytes` leaves one site."""

    exposed_seconds: float
    link_seconds: float
    sent_bytes: float
    price: float


def payload_bytes(params: float, sync: Sync) -> float:
    """Return the bytes of all parameters, once, as they are written for the link."""
    return params * sync.bits / 8


def round_seconds(
    cluster: Cluster, payload: float, idle_seconds: float = 0.0, lanes: int = 1
) -> tuple[float, float, float]:
    """Return seconds (on the slowest link, of starting slowly, of latency) of exchanging bytes among all sites.

    A connection that has been idle for longer than its retransmission timer starts slowly (RFC 5681, section 4.1): its
    window doubles every round trip up to the bandwidth-delay product, or to what there is to send.

    Two sites send each other everything; from three on each owns a part: 2/S of the payload goes over every pair's
    way, and there are two phases (parallelism/sites/allreduce.py).
    """
    sites = len(cluster.sites)
    if sites < 2:
        return 0.0, 0.0, 0.0
    part = payload * 2 / sites
    carried = min(site.measured.wan_efficiency for site in cluster.sites)
    phases = 1 if sites == 2 else 2
    slowest = max(part / (link.bytes_per_second * carried) for link in cluster.links)
    slow = max(_slow_start(link, part / phases, idle_seconds, lanes) for link in cluster.links)
    latency = max(link.rtt_seconds for link in cluster.links) / 2
    latency += max(site.measured.wan_round_seconds for site in cluster.sites)
    return slowest, phases * slow, phases * latency


def _slow_start(link: Link, message: float, idle_seconds: float, lanes: int) -> float:
    """Return the seconds by which windows that grow from ten segments delay a message over a link's streams."""
    if idle_seconds <= max(_LEAST_TIMER_SECONDS, 2 * link.rtt_seconds):
        return 0.0
    # Beyond ln 2 of the message a faster link no longer shortens what is sent in doublings.
    full = min(link.bytes_per_second * link.rtt_seconds, message * math.log(2))
    doublings = math.log2(max(1.0, full / (lanes * _STREAMS * _FIRST_WINDOW_BYTES)))
    # What crosses while the window grows fills about one round trip of the link.
    return link.rtt_seconds * max(0.0, doublings - 1.0)


def crossing(
    params: float,
    sync: Sync,
    cluster: Cluster,
    *,
    step_seconds: float,
    window_seconds: float,
    buckets: int,
    codec_seconds: float = 0.0,
    lanes: int = 1,
) -> Crossing:
    """Return what sync costs per step.

    Args:
        cluster: with a link (or a way) for every pair of sites, as `Cluster.routed` returns.
        step_seconds: of the step without the links.
        window_seconds: of backward pass that exact sync can hide behind, from the first bucket's readiness on.
        buckets: gradient buckets of a rank; the last is ready when the backward pass ends.
        lanes: ranks of a site, each with connections of its own.
        codec_seconds: of packing, encoding and decoding all of a rank's numbers.
    """
    sites = len(cluster.sites)
    if sync.kind == "none" or sites < 2:
        return Crossing(exposed_seconds=0.0, link_seconds=0.0, sent_bytes=0.0, price=0.0)
    payload = payload_bytes(params, sync)
    rounds = sync.fragments if sync.kind == "local" else 1
    gap = step_seconds * (sync.every / sync.fragments if sync.kind == "local" else 1)
    whole, slow, latency = round_seconds(cluster, payload / rounds, gap, lanes)
    whole *= rounds
    sent = payload * (1 if sites == 2 else 2 * (sites - 1) / sites)
    per_link_gigabytes = payload * 2 / sites * 2 / 1e9  # both directions
    price = sum(link.price_per_gigabyte * per_link_gigabytes for link in cluster.links)
    if sync.kind == "exact":
        exposed = exact_exposed(whole + slow + codec_seconds, latency, window_seconds, buckets)
        return Crossing(exposed_seconds=exposed, link_seconds=whole, sent_bytes=sent, price=price)
    exposed = local_exposed(whole, slow + latency, codec_seconds, sync, step_seconds)
    every = sync.every
    return Crossing(
        exposed_seconds=exposed / every, link_seconds=whole / every, sent_bytes=sent / every, price=price / every
    )


def exact_exposed(whole: float, latency: float, window: float, buckets: int) -> float:
    """Return the seconds after the backward pass until the last bucket's sum is there.

    Buckets become ready evenly over the window and cross one after the other: either the link has been free and only
    the last one is waited for, or it has been busy since the first.
    """
    last = whole / buckets
    return latency + max(last, whole - window * (1 - 1 / buckets))


def local_exposed(whole: float, latency: float, codec: float, sync: Sync, step: float) -> float:
    """Return the seconds that H steps wait for the P fragments of a round.

    A fragment has tau steps to arrive; and over H steps the link must carry all of them.
    """
    fragment = (whole + codec) / sync.fragments + latency
    waits = sync.fragments * max(0.0, fragment - sync.overlap_steps * step)
    return max(waits, whole - sync.every * step, 0.0)


def idealised_utilisation(
    params: float, step_seconds: float, bytes_per_second: float, sync: Sync, *, hide: float = HIDING_SHARE
) -> float:
    """Return compute / (compute + exposed) of two sites on one link without latency, headers and codecs.

    Exact: the gradient crosses once, the backward pass (`hide` of a step) can hide it. Local: as in `local_exposed`.
    """
    whole = payload_bytes(params, sync) / bytes_per_second
    if sync.kind == "exact":
        exposed = max(0.0, whole - hide * step_seconds)
    else:
        exposed = local_exposed(whole, 0.0, 0.0, sync, step_seconds) / sync.every
    return step_seconds / (step_seconds + exposed)


def needed_bytes_per_second(params: float, step_seconds: float, sync: Sync, utilisation: float) -> float:
    """Return the link speed at which `idealised_utilisation` reaches a value, by bisection on its logarithm."""
    low, high = 1.0, 1e18
    for _ in range(100):
        middle = (low * high) ** 0.5
        if idealised_utilisation(params, step_seconds, middle, sync) < utilisation:
            low = middle
        else:
            high = middle
    return high


def narrowest(cluster: Cluster) -> Sequence[str]:
    """Return the ends of the slowest way between two sites."""
    return min(cluster.links, key=lambda link: link.bytes_per_second).ends if cluster.links else ()
