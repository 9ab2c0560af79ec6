"""What the planner is told: `plan.*` and `cluster.*` on the command line of `isthmus plan`."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from isthmus.config import key
from isthmus.train.config import Config


class Prefer(Enum):
    time = "time"
    cost = "cost"


@dataclass(kw_only=True, slots=True)
class SiteSpec:
    """One data center. What is null comes from the accelerator's data sheet."""

    accelerator: str = key("h100", "a100, h100, h200, b200, tpu, cpu")
    count: int | None = key(None, "accelerators, CPU: ranks (plan: as many as finish in 30 days; predict: one node)")
    node_size: int | None = key(None, "accelerators that share the fast links of a node")
    memory_gb: float | None = key(None, "memory of one accelerator, in 10^9 bytes")
    peak_tflops: float | None = key(None, "dense bf16 peak of one accelerator")
    intra_node_gigabytes: float | None = key(None, "10^9 bytes/s each way of one accelerator inside a node")
    inter_node_gbps: float | None = key(None, "Gbit/s each way of one accelerator out of its node")
    price_per_hour: float | None = key(None, "US dollars for one accelerator")
    hours_between_failures: float | None = key(None, "of one accelerator (50,700: Llama 3's 419 failures)")
    storage_gigabytes: float = key(20.0, "10^9 bytes/s of the site's checkpoint storage")
    slowdown: float = key(0.0, "how much longer the slowest accelerator takes, beyond the usual spread (0.1: a tenth)")
    profile: str | None = key(None, "JSON file that isthmus plan calibrate wrote on such a machine")


@dataclass(kw_only=True, slots=True)
class LinkSpec:
    between: list[str] = key([], "the two sites")
    bandwidth_gbps: float = key(10.0, "Gbit/s each way")
    rtt_ms: float = key(50.0, "round trip")
    price_per_gb: float = key(0.0, "US dollars per 10^9 bytes")


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Sites and the links between them."""

    sites: dict[str, SiteSpec] = key({}, "NAME: {accelerator, count, ...}")
    links: list[LinkSpec] = key([], "[{between: [A, B], bandwidth_gbps, rtt_ms, price_per_gb}]")


@dataclass(kw_only=True, slots=True)
class PlanSection:
    """The question. One of flops, days, params and loss; the rest follows."""

    flops: float | None = key(None, "training FLOPs to spend, 6 N D, what failures waste included")
    days: float | None = key(None, "days to use the cluster for")
    params: float | None = key(None, "parameters of the model")
    loss: float | None = key(None, "loss to reach, on the law's own scale")
    tokens_per_parameter: float | None = key(None, "fix the ratio instead of the optimum (over-training)")
    unique_tokens: Any = key(None, "tokens that there are: a number, or {source: number}; repetition is worth less")
    max_epochs: float = key(4.0, "passes over a source up to which the mixture is evened out")
    inference_tokens: float = key(0.0, "tokens that the model will serve in its life")
    max_params: float | None = key(None, "limit on the parameters")
    max_tokens: float | None = key(None, "limit on the training tokens")
    max_days: float | None = key(None, "limit on the days")
    max_cost: float | None = key(None, "limit on the cost in US dollars")
    prefer: Prefer = key(Prefer.time, "which of the plans at hand: soonest at equal loss (time) or cheapest (cost)")
    law: str = key("besiroglu", "besiroglu, hoffmann-3, hoffmann-3-table, muennighoff, or a JSON file of plan fit")
    sync_penalty: float | None = key(None, "measured relative rise of the loss by local sync (null: published laws)")
    vocab_size: int | None = key(None, "vocabulary (128,256; on CPUs 1,024)")
    sequence_length: int | None = key(None, "tokens per sample (4,096; on CPUs 128)")
    precision: str | None = key(None, "bf16, fp8, fp32 (bf16; on CPUs fp32)")
    global_batch: int | None = key(None, "samples per step of all sites (null: Step Law's batch)")
    bytes_per_token: float = key(4.0, "of tokenized data, for the cost of copying it to every site")
    restart_minutes: float = key(10.0, "from a failure to the next step")
    repair_hours: float = key(24.0, "until a failed accelerator is back, for spares")
    power_overhead: float = key(1.2, "energy of the data center over that of the accelerators (PUE)")
    ranks_per_site: int | None = key(None, "predict: ranks of every site (null: all accelerators of the smallest)")
    out: str = key("plan", "folder for plan.yaml, plan.json and report.html")


@dataclass(kw_only=True, slots=True)
class PlanRunConfig(Config):
    """Everything that `isthmus plan` can be told: all of train, the cluster and the question."""

    plan: PlanSection = key(PlanSection, "")
    cluster: ClusterConfig = key(ClusterConfig, "")


# What `isthmus plan` reads; the rest of train's keys it chooses itself, and refuses. `predict` reads them.
PLAN_READS = ("plan", "cluster", "data", "experiment")
PREDICT_READS = ("model", "parallel", "train", "sync", "cluster", "experiment", "plan.ranks_per_site")
