"""From configuration to the planner's plain dataclasses; what a user can get wrong about a cluster is found here."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from isthmus.errors import UserError
from isthmus.parallelism.sites.config import SyncConfig
from isthmus.train.planner.accelerators import Accelerator, accelerator
from isthmus.train.planner.cluster import HOURS_BETWEEN_FAILURES, Cluster, Link, Site
from isthmus.train.planner.config import ClusterConfig, PlanRunConfig, SiteSpec
from isthmus.train.planner.constants import Constants, constants_of
from isthmus.train.planner.laws import LAWS, LossLaw
from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.shape import Shape, shape_of

_DAYS = 30


def cluster_of(config: ClusterConfig, flops: float | None = None) -> Cluster:
    """Return the cluster as it is described.

    A site without a count gets one node, or with `flops` as many accelerators as spend them in 30 days at 40% of the
    peak, the sites without a count together.

    Raises:
        UserError: a number that cannot be, an unknown site in a link, sites that no links join.
    """
    if not config.sites:
        raise UserError("there are none", where="cluster.sites", fix="name one: sites: {main: {accelerator: h100}}")
    open_sites = sum(spec.count is None for spec in config.sites.values())
    sites = [
        _site(name, spec, flops / open_sites if flops and open_sites else None) for name, spec in config.sites.items()
    ]
    names = [site.name for site in sites]
    links: list[Link] = []
    for number, spec in enumerate(config.links):
        where = f"cluster.links[{number}]"
        if len(spec.between) != 2 or len(set(spec.between)) != 2:
            raise UserError(f"is between {list(spec.between)}", where=where, fix="write between: [A, B]")
        for name in spec.between:
            if name not in names:
                raise UserError(f"there is no site '{name}'", where=where, fix=f"sites are {', '.join(names)}")
        _positive(f"{where}.bandwidth_gbps", spec.bandwidth_gbps)
        _positive(f"{where}.rtt_ms", spec.rtt_ms, zero=True)
        _positive(f"{where}.price_per_gb", spec.price_per_gb, zero=True)
        if any(set(link.ends) == set(spec.between) for link in links):
            raise UserError(f"{' and '.join(spec.between)} have one already", where=where, fix="give each pair once")
        links.append(
            Link(
                ends=(spec.between[0], spec.between[1]),
                bytes_per_second=spec.bandwidth_gbps * 1e9 / 8,
                rtt_seconds=spec.rtt_ms / 1e3,
                price_per_gigabyte=spec.price_per_gb,
            )
        )
    cluster = Cluster(sites=sites, links=links)
    if len(sites) > 1 and not links:
        raise UserError(
            f"{len(sites)} sites and no link",
            where="cluster.links",
            fix=f"add {{between: [{names[0]}, {names[1]}], bandwidth_gbps: 10}}",
        )
    groups = cluster.components()
    if len(groups) > 1:
        largest = max(groups, key=len)
        lost = next(group for group in groups if group is not largest)
        raise UserError(
            f"no links lead from {lost[0]} to {largest[0]}",
            where="cluster.links",
            fix=f"add {{between: [{lost[0]}, {largest[0]}], bandwidth_gbps: 10}} or leave {', '.join(lost)} out",
        )
    return cluster


def _site(name: str, spec: SiteSpec, flops: float | None) -> Site:
    where = f"cluster.sites.{name}"
    for entry in ("count", "node_size", "memory_gb", "peak_tflops", "intra_node_gigabytes", "inter_node_gbps"):
        _positive(f"{where}.{entry}", getattr(spec, entry))
    for entry in ("hours_between_failures", "storage_gigabytes"):
        _positive(f"{where}.{entry}", getattr(spec, entry))
    for entry in ("price_per_hour", "slowdown"):
        _positive(f"{where}.{entry}", getattr(spec, entry), zero=True)
    sheet = accelerator(spec.accelerator, f"{where}.accelerator")
    constants = constants_of(sheet)
    changed: dict[str, Any] = {}
    if spec.node_size is not None:
        changed["node_size"] = spec.node_size
    if spec.memory_gb is not None:
        changed["memory_bytes"] = spec.memory_gb * 1e9
    if spec.peak_tflops is not None:
        scale = spec.peak_tflops * 1e12 / sheet.bf16_flops
        changed |= {f"{name}_flops": scale * sheet.peak_flops(name) for name in ("bf16", "fp8", "fp32")}
    if spec.intra_node_gigabytes is not None:
        changed["link_bytes_per_second"] = spec.intra_node_gigabytes * 1e9
    if spec.inter_node_gbps is not None:
        changed["network_bytes_per_second"] = spec.inter_node_gbps * 1e9 / 8
    sheet = replace(sheet, **changed)
    if spec.profile is not None:
        sheet, constants = read_profile(Path(spec.profile).expanduser(), sheet, constants)
    return Site(
        name=name,
        accelerator=sheet,
        count=spec.count or _count(sheet, flops),
        constants=constants,
        price_per_hour=spec.price_per_hour,
        hours_between_failures=spec.hours_between_failures or HOURS_BETWEEN_FAILURES,
        storage_bytes_per_second=spec.storage_gigabytes * 1e9,
        slowdown=spec.slowdown,
    )


def _count(sheet: Accelerator, flops: float | None) -> int:
    if flops is None:
        return sheet.node_size
    peak = sheet.fp32_flops if sheet.kind == "cpu" else sheet.bf16_flops
    nodes = flops / (0.4 * peak * _DAYS * 86_400) / sheet.node_size
    return int(sheet.node_size * 2 ** max(0, math.ceil(math.log2(nodes))))


def read_profile(path: Path, sheet: Accelerator, constants: Constants) -> tuple[Accelerator, Constants]:
    """Return data sheet and constants with what was measured on a machine in their place.

    Raises:
        UserError: the file is no profile.
    """
    try:
        content = json.loads(path.read_text())
        measured = {name: float(value) for name, value in content["accelerator"].items()}
        fitted = {name: float(value) for name, value in content["constants"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"is no profile: {error}", where=str(path), fix="make one with: isthmus plan calibrate --out FILE"
        ) from None
    for where, values, known in (("accelerator", measured, sheet), ("constants", fitted, constants)):
        names = {entry.name for entry in fields(known)} - {"name", "kind", "source"}
        if unknown := sorted(set(values) - names):
            raise UserError(f"there is no {where}.{unknown[0]}", where=str(path), fix="make the profile anew")
        for name, value in values.items():
            _positive(f"{path}: {where}.{name}", value, zero=True)
    return replace(sheet, **measured), replace(constants, source=f"measured: {path}", **fitted)  # type: ignore[arg-type]


def layout_of(config: PlanRunConfig, cluster: Cluster) -> Layout:
    """Return the configured layout, with the data size that follows from the smallest site.

    Raises:
        UserError: the model-parallel sizes do not divide its accelerators.
    """
    parallel, train = config.parallel, config.train
    smallest = min(cluster.sites, key=lambda site: site.count)
    ranks = config.plan.ranks_per_site or smallest.count
    for name in ("tensor", "pipeline", "virtual_pipeline", "context", "expert"):
        _positive(f"parallel.{name}", getattr(parallel, name))
    for name in ("global_batch", "micro_batch", "sequence_length"):
        _positive(f"train.{name}", getattr(train, name))
    _positive("plan.ranks_per_site", ranks)
    _positive("parallel.bucket_parameters", parallel.bucket_parameters)
    model_parallel = parallel.tensor * parallel.pipeline * parallel.context
    if ranks % model_parallel:
        nearest = max(1, ranks // model_parallel) * model_parallel
        raise UserError(
            f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x context {parallel.context} = {model_parallel} "
            f"does not divide the {ranks} accelerators of {smallest.name}",
            where="parallel",
            fix=f"the nearest number of accelerators is {nearest}: plan.ranks_per_site={nearest}",
        )
    precision = train.precision.name
    return Layout(
        tensor=parallel.tensor,
        sequence=parallel.sequence,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
        context=parallel.context,
        expert=parallel.expert,
        data=ranks // model_parallel,
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        sequence_length=train.sequence_length,
        precision=precision,
        recompute=parallel.recompute.name,
        distributed_optimizer=parallel.distributed_optimizer,
        overlap=parallel.overlap,
        bucket_params=parallel.bucket_parameters,
    )


def sync_of(config: SyncConfig) -> Sync:
    return Sync(
        kind=config.kind.name,
        wire=config.wire.name,
        every=config.every or 1,
        fragments=config.fragments or 1,
        overlap_steps=config.overlap_steps or 0,
        density=config.density or 0.02,
    )


def shape_of_config(config: PlanRunConfig) -> Shape:
    return shape_of(config.model)


def law_of_name(name: str) -> LossLaw:
    """Return a law that knows losses, by name or from a file that `isthmus plan fit` wrote.

    Raises:
        UserError: there is none.
    """
    if name in LAWS:
        return LAWS[name]
    if not name.endswith(".json"):
        raise UserError(f"there is no '{name}'", where="plan.law", fix=f"choose {', '.join(LAWS)} or a .json file")
    path = Path(name).expanduser()
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        return LossLaw(
            name=path.stem,
            E=float(content["E"]),
            A=float(content["A"]),
            B=float(content["B"]),
            alpha=float(content["alpha"]),
            beta=float(content["beta"]),
            source=str(content["source"]),
            largest_flops=float(content["largest_flops"]),
            smallest_flops=float(content["smallest_flops"]),
            samples=tuple(tuple(float(value) for value in sample) for sample in content["samples"]),  # type: ignore[misc]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"is no law: {error}", where=f"plan.law={name}", fix="make one with: isthmus plan fit POINTS.csv"
        ) from None


def _positive(where: str, value: float | None, *, zero: bool = False) -> None:
    if value is None:
        return
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise UserError(f"is {value:g}", where=where, fix="0 or more" if zero else "it must be positive")


def check_question(config: PlanRunConfig) -> None:
    """Refuse numbers that no question has, and questions with no or two givens.

    Raises:
        UserError: naming the key.
    """
    plan = config.plan
    givens = [name for name in ("flops", "days", "params", "loss") if getattr(plan, name) is not None]
    if len(givens) != 1:
        what = f"{' and '.join(f'plan.{name}' for name in givens)} are given" if givens else "nothing is given"
        raise UserError(
            what, where="plan", fix="give one of plan.flops=1e24, plan.days=30, plan.params=70e9, plan.loss=2"
        )
    for name in (*givens, "tokens_per_parameter", "max_epochs", "max_params", "max_tokens", "max_days", "max_cost"):
        _positive(f"plan.{name}", getattr(plan, name))
    for name in ("vocab_size", "sequence_length", "global_batch", "bytes_per_token", "restart_minutes", "repair_hours"):
        _positive(f"plan.{name}", getattr(plan, name))
    for name in ("inference_tokens", "sync_penalty"):
        _positive(f"plan.{name}", getattr(plan, name), zero=True)
    if plan.power_overhead < 1:
        raise UserError(f"is {plan.power_overhead:g}", where="plan.power_overhead", fix="it starts at 1")
    if plan.precision not in (None, "bf16", "fp8", "fp32"):
        raise UserError(f"is {plan.precision}", where="plan.precision", fix="choose bf16, fp8 or fp32")
    if plan.tokens_per_parameter is not None and plan.inference_tokens:
        raise UserError(
            "a fixed ratio leaves nothing to choose for inference",
            where="plan.tokens_per_parameter, plan.inference_tokens",
            fix="give one of them",
        )


def unique_tokens_of(given: Any) -> dict[str, float]:
    """Return unique tokens by source; one number stands for a single source.

    Raises:
        UserError: it is neither a number nor numbers by source.
    """
    if given is None:
        return {}
    entries = dict(given) if isinstance(given, Mapping) else {"all": given}
    found = {}
    for name, value in entries.items():
        where = f"plan.unique_tokens.{name}"
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError):
            raise UserError(f"is {value!r}", where=where, fix="give a number of tokens, as 5e12") from None
        _positive(where, found[str(name)])
    return found
