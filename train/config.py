"""The whole run's configuration: the root of the schema, and its cross-field arithmetic."""

from dataclasses import dataclass
from enum import Enum

from isthmus.config import fingerprint, key
from isthmus.data.config import DataConfig
from isthmus.fault_tolerance.chaos import ChaosConfig
from isthmus.fault_tolerance.config import CheckpointConfig, RestartConfig, WatchdogConfig
from isthmus.fault_tolerance.guard import GuardConfig
from isthmus.parallelism.config import Fp8Recipe, ModelConfig, OptimConfig, ParallelConfig, Precision
from isthmus.parallelism.sites.config import LaneConfig, SitesConfig, SyncConfig


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class ScheduleKind(Enum):
    cosine = "cosine"
    wsd = "wsd"
    constant = "constant"


@dataclass(kw_only=True, slots=True)
class RunConfig:
    name: str | None = key(
        None, "folder under run.dir (default: PREFIX-HASH, a function of the composed configuration)"
    )
    prefix: str | None = key(None, "first part of the default name (model.name)")
    dir: str = key("runs", "where run folders live; the run's is run.dir/run.name/SITE")


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    steps: int | None = key(None, "length in optimizer steps (give this or train.tokens)")
    tokens: int | None = key(None, "length in tokens of all sites, rounded up to whole steps")
    global_batch: int = key(8, "samples per step, all sites and ranks together")
    micro_batch: int = key(1, "samples per forward pass of one data-parallel rank")
    sequence_length: int = key(128, "tokens per sample")
    seed: int = key(0, "initial weights and data order")
    device: Device = key(Device.auto, "auto, cpu, cuda")
    precision: Precision = key(Precision.fp32, "fp32, bf16 (fp32 main parameters), fp8 (needs transformer-engine)")
    fp8_recipe: Fp8Recipe = key(Fp8Recipe.delayed, "scaling of fp8: delayed, tensorwise, blockwise, mxfp8")
    threads: int | None = key(None, "CPU threads per rank (torch's default; torchrun sets 1)")
    deterministic: bool = key(False, "bitwise repeatable on GPUs too, at some cost (on CPU every run is)")
    timeout_seconds: float = key(600.0, "limit on any wait for another rank of the site")


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """The learning rate as a function of the tokens seen; see train/schedules.py."""

    kind: ScheduleKind = key(ScheduleKind.cosine, "cosine, wsd (warm-up, stable, decay), constant")
    warmup_tokens: int | None = key(None, "linear warm-up (null: warmup_fraction of the run)")
    warmup_fraction: float = key(0.02, "warm-up as a fraction of the run, where warmup_tokens is null")
    decay_fraction: float = key(0.2, "wsd: fraction of the run spent decaying at the end")
    final_fraction: float = key(0.1, "learning rate at the end, as a fraction of the peak (constant: unused)")


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    every_steps: int = key(0, "held-out loss per source before the first step, every so many steps, and at the end")
    samples: int = key(16, "held-out samples per source and evaluation, at most")


@dataclass(kw_only=True, slots=True)
class LogConfig:
    every_steps: int = key(1, "steps between rows of metrics.jsonl, TensorBoard points and progress updates")
    tensorboard: bool = key(True, "write TensorBoard files")
    peak_tflops: float | None = key(None, "peak of one device for MFU (null: data sheet of the GPU; measured on CPU)")


@dataclass(kw_only=True, slots=True)
class Config:
    """Everything that `isthmus train` can be told."""

    run: RunConfig = key(RunConfig, "")
    model: ModelConfig = key(ModelConfig, "")
    parallel: ParallelConfig = key(ParallelConfig, "")
    train: TrainConfig = key(TrainConfig, "")
    optim: OptimConfig = key(OptimConfig, "")
    schedule: ScheduleConfig = key(ScheduleConfig, "")
    data: DataConfig = key(DataConfig, "")
    sync: SyncConfig = key(SyncConfig, "")
    sites: SitesConfig = key(SitesConfig, "")
    lane: LaneConfig = key(LaneConfig, "")
    eval: EvalConfig = key(EvalConfig, "")
    log: LogConfig = key(LogConfig, "")
    checkpoint: CheckpointConfig = key(CheckpointConfig, "")
    restart: RestartConfig = key(RestartConfig, "")
    guard: GuardConfig = key(GuardConfig, "")
    watchdog: WatchdogConfig = key(WatchdogConfig, "")
    chaos: ChaosConfig = key(ChaosConfig, "")


# What may differ between the sites of one run: it names a place, or says how this site works, not what it computes.
PER_SITE = (
    "run.dir",
    "sites.name",
    "sites.store",
    "sites.token_file",
    "sites.wait_seconds",
    "lane.interface",
    "lane.port_range",
    "lane.deadline_seconds",
    "lane.buffer_bytes",
    "lane.congestion",
    "train.device",
    "train.threads",
    "train.timeout_seconds",
    "data.cache_dir",
    "data.cache_bytes",
    "data.workers",
    "data.prefetch",
    "data.open_files",
    "data.log_samples",
    "log",
    "restart",
    "watchdog",
    "chaos",
    "checkpoint.keep",
    "checkpoint.keep_every",
    "checkpoint.asynchronous",
    "checkpoint.resume",
    "checkpoint.deadline_seconds",
    "checkpoint.time_limit_seconds",
)


def run_name(config: Config) -> str:
    """Return `run.name`, or a name that is the same whenever the same run is composed, in every site."""
    # How a run is kept alive does not make it another run.
    whole = ["run", "lane", "checkpoint", "restart", "watchdog", "chaos"]
    without = [*whole, *(name for name in PER_SITE if name.partition(".")[0] not in whole)]
    return config.run.name or f"{config.run.prefix or config.model.name}-{fingerprint(config, without=without)}"


def site_name(config: Config) -> str:
    """Return the last folder of the run folder's path: this site, or `main` where there is one."""
    return config.sites.name or "main"


def tokens_per_step(config: Config) -> int:
    return config.train.global_batch * config.train.sequence_length


def total_steps(config: Config) -> int:
    """Return the number of optimizer steps; `validate` has made sure that exactly one of steps and tokens is given."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.tokens is not None
    return -(-config.train.tokens // tokens_per_step(config))
