"""A plan as an experiment file: `isthmus train experiment=plan.yaml` takes it as it is."""

from collections.abc import Collection
from typing import Any

import yaml

from isthmus.config import keys_of
from isthmus.data.config import DataConfig
from isthmus.train.config import Config
from isthmus.train.planner.plan import Plan, checkpoint_steps
from isthmus.units import format_count, format_duration

_DIGITS = 4


def overlay(plan: Plan, data: DataConfig, known_keys: Collection[str] | None = None) -> str:
    """Return the YAML text: model, parallel, sync, train, schedule, mixture, and checkpoints where the schema has them.

    Args:
        data: the sources that the plan was asked about.
        known_keys: of the schema, by default that of `isthmus train`.
    """
    known = {name for name, _, _ in keys_of(Config)} if known_keys is None else set(known_keys)
    chosen = plan.chosen
    groups = [{"override /schedule": "cosine"}, {"override /sync": chosen.sync.kind}]
    embedded = all(source.path is None for source in data.sources.values())
    names = set(data.sources)
    own_sources = bool(plan.mixture) and not set(plan.mixture) <= names | {"all"}
    if own_sources or not embedded:
        groups.append({"override /data": "none"})
    content: dict[str, Any] = {
        "defaults": groups,
        "model": _model(plan),
        "parallel": _parallel(plan),
        "train": {
            "steps": chosen.steps,
            "global_batch": chosen.layout.global_batch,
            "micro_batch": chosen.layout.micro_batch,
            "sequence_length": chosen.layout.sequence_length,
            "precision": chosen.layout.precision,
        },
        "optim": {"learning_rate": _rounded(chosen.recipe.learning_rate)},
    }
    if chosen.sync.kind != "none":
        content["sync"] = _sync(plan)
        content["sites"] = {"names": chosen.site_names}
    if "checkpoint.every_steps" in known:
        content["checkpoint"] = {"every_steps": checkpoint_steps(chosen)}
    if sources := _sources(plan, data, own_sources):
        content["data"] = {"sources": sources}
        if not embedded:  # the choice that the sources came from is not there when the file is used
            content["data"] |= {"vocab_size": data.vocab_size, "held_out": data.held_out, "cache_dir": data.cache_dir}
    return _heading(plan) + yaml.safe_dump(content, sort_keys=False)


def _model(plan: Plan) -> dict[str, Any]:
    shape = plan.chosen.shape
    return {
        "name": f"plan-{format_count(shape.params).lower()}",
        "num_layers": shape.layers,
        "hidden_size": shape.hidden,
        "ffn_hidden_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_query_groups": shape.groups,
        "head_dim": shape.head_width,
        "vocab_size": shape.vocabulary,
        "tied_embeddings": shape.tied,
        "num_experts": 0,
        "rope_base": 500_000.0 if plan.question.sequence_length > 2048 else 10_000.0,
    }


def _parallel(plan: Plan) -> dict[str, Any]:
    layout = plan.chosen.layout
    return {
        "tensor": layout.tensor,
        "sequence": layout.sequence,
        "pipeline": layout.pipeline,
        "virtual_pipeline": layout.virtual_pipeline,
        "context": layout.context,
        "expert": 1,
        "distributed_optimizer": layout.distributed_optimizer,
        "recompute": layout.recompute,
    }


def _sync(plan: Plan) -> dict[str, Any]:
    sync = plan.chosen.sync
    if sync.kind == "exact":
        return {"wire": sync.wire}
    return {
        "wire": sync.wire,
        "every": sync.every,
        "fragments": sync.fragments,
        "overlap_steps": sync.overlap_steps,
        # A fragment that arrives late is merged with what the site has learnt since (arXiv 2501.18512, section 2.3).
        "merge": 0.5 if sync.overlap_steps else 0.0,
    }


def _sources(plan: Plan, data: DataConfig, own_sources: bool) -> dict[str, Any]:
    if own_sources:
        return {name: {"weight": _rounded(share)} for name, (share, _) in plan.mixture.items()}
    found: dict[str, Any] = {}
    for name, source in data.sources.items():
        share = plan.mixture.get(name, (source.weight, 0.0))[0]
        found[name] = {"weight": _rounded(share)}
        if source.path is not None:
            found[name]["path"] = source.path
        if source.max_epochs is not None:
            found[name]["max_epochs"] = source.max_epochs
    return found


def _heading(plan: Plan) -> str:
    chosen, layout = plan.chosen, plan.chosen.layout
    every = format_duration(chosen.reliability.interval_seconds)
    where = " and ".join(chosen.site_names) if len(chosen.site_names) < 4 else f"{len(chosen.site_names)} sites"
    lines = [
        "# @package _global_",
        f"# {format_count(chosen.shape.params)} parameters on {format_count(chosen.tokens)} tokens, "
        f"{chosen.days:.3g} days, predicted loss {chosen.loss:.3f}; written by isthmus plan.",
        f"# {layout.ranks} ranks in each of {where}: tensor {layout.tensor} x pipeline {layout.pipeline} x context "
        f"{layout.context} x data {layout.data}.",
        f"# Checkpoints every {checkpoint_steps(chosen)} steps ({every}); keep {chosen.reliability.spares} spares.",
    ]
    if chosen.sync.kind != "none":
        lines.append("# Every site adds: sites.name=NAME sites.store=HOST:PORT")
    return "\n".join(lines) + "\n"


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
