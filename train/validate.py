"""What can be checked before ranks start is checked here, so that a user reads one line and not one per rank."""

import dataclasses
import fcntl
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.config import to_plain
from isthmus.errors import UserError
from isthmus.fault_tolerance.chaos import validate_chaos
from isthmus.fault_tolerance.guard import validate_guard
from isthmus.parallelism.config import OptimConfig
from isthmus.parallelism.sites.config import SyncKind
from isthmus.parallelism.sites.validate import validate_sites, validate_sync
from isthmus.parallelism.topology import (
    Topology,
    build_topology,
    validate_batch,
    validate_device,
    validate_layout,
    validate_model,
)
from isthmus.train.config import Config, Device, run_name, site_name, tokens_per_step, total_steps
from isthmus.train.schedules import validate_schedule
from isthmus.train.timeouts import validate_timeouts

if TYPE_CHECKING:
    from isthmus.data.corpus import Corpus
    from isthmus.data.mixture import Mixture


@dataclass(frozen=True)
class Plan:
    """What follows from a valid configuration."""

    topology: Topology
    sites: int
    site: int  # this one's place among them, from 0
    shares: tuple[int, ...]  # of the global batch, for each site
    steps: int
    total_tokens: int
    folder: Path


def plan_run(config: Config, world_size: int, local_world_size: int | None = None, *, elsewhere: bool = False) -> Plan:
    """Check the configuration against itself, the number of ranks (all, and on this machine) and this machine.

    Args:
        elsewhere: the run will be on other machines than this one, which is not looked at.

    Raises:
        UserError: the first thing that is wrong.
    """
    _validate_finite(config)
    _validate_train(config)
    _validate_checkpoint(config)
    validate_guard(config.guard)
    validate_model(config.model)
    topology = build_topology(config.parallel, world_size)
    validate_layout(config.model, config.parallel, config.train.sequence_length)
    validate_sync(config.sync, config.model, config.parallel)
    validate_sites(config.sites, config.lane, config.sync, config.parallel, topology)
    names = config.sites.names if config.sync.kind is not SyncKind.none else []
    validate_timeouts(config)
    shares = tuple(config.sites.shares) if names and config.sites.shares else (1,) * max(len(names), 1)
    for place in range(len(shares)):
        validate_batch(topology, config.train.global_batch, config.train.micro_batch, shares=shares, site=place)
    if not elsewhere:
        _validate_machine(config, local_world_size or world_size)
    _validate_optim(config.optim)
    steps = total_steps(config)
    validate_chaos(config.chaos, ranks=topology.world_size, steps=steps, sites=names or [site_name(config)])
    total_tokens = steps * tokens_per_step(config)
    validate_schedule(config.schedule, total_tokens)
    folder = Path(config.run.dir).expanduser() / run_name(config) / site_name(config)
    return Plan(
        topology=topology,
        sites=max(len(names), 1),
        shares=shares,
        site=names.index(config.sites.name) if config.sites.name in names else 0,
        steps=steps,
        total_tokens=total_tokens,
        folder=folder,
    )


def load_corpus(config: Config, plan: Plan, *, admit: bool = True) -> "tuple[Corpus, Mixture]":
    """Open the sources and plan their mixture, and refuse them if they cannot feed the run.

    Args:
        admit: refuse a mixture with too little real data as well.

    Raises:
        UserError: naming the source.
    """
    from isthmus.data.accounting import account
    from isthmus.data.admission import check_real_share
    from isthmus.data.corpus import build_corpus  # late, with torch: a wrong key should not wait for it
    from isthmus.data.loader import validate_corpus

    corpus = build_corpus(config.data, config.model.vocab_size, config.train.sequence_length)
    mixture = validate_corpus(
        corpus,
        config.data,
        sequence_length=config.train.sequence_length,
        global_batch=config.train.global_batch,
        steps=plan.steps,
        seed=config.train.seed,
        held_out=config.eval.every_steps > 0,
    )
    synthetic = {name: source.synthetic for name, source in corpus.sources.items()}
    if admit and any(synthetic.values()):
        check_real_share(account(mixture, synthetic, config.data.real_floor), synthetic, config.data.real_floor)
    return corpus, mixture


def prepare_folder(folder: Path) -> None:
    """Make the run folder and prove that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder} cannot be written: {reason}", where="run.dir", fix="choose another folder") from None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Within: no other run writes to this run folder. The lock goes with the process, however that ends.

    Raises:
        UserError: another run has it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {folder}",
                where="run.name",
                fix="wait for it, stop it or choose another name",
            ) from None
        yield


def use_device(device: Device) -> None:
    """Hide the GPUs if the CPU is asked for; must run before anything asks CUDA a question."""
    if device is Device.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _validate_finite(config: Any, prefix: str = "") -> None:
    """Refuse NaN and infinity wherever they stand: comparisons would let them through."""
    values = to_plain(config) if dataclasses.is_dataclass(config) else config
    for name, value in values.items():
        if isinstance(value, dict):
            _validate_finite(value, f"{prefix}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"is {value}", where=f"{prefix}{name}", fix="give a finite number")


def _validate_train(config: Config) -> None:
    train = config.train
    if (train.steps is None) == (train.tokens is None):
        given = "neither is given" if train.steps is None else "both are given"
        raise UserError(given, where="train.steps, train.tokens", fix="give the length of the run by one of them")
    for where, value in (
        ("train.steps", train.steps),
        ("train.tokens", train.tokens),
        ("train.sequence_length", train.sequence_length),
        ("train.threads", train.threads),
        ("log.every_steps", config.log.every_steps),
        ("eval.samples", config.eval.samples),
    ):
        if value is not None and value < 1:
            raise UserError(f"is {value}", where=where, fix="it starts at 1")
    if config.eval.every_steps < 0:
        raise UserError(f"is {config.eval.every_steps}", where="eval.every_steps", fix="0 means never")
    for where, limit in (("train.timeout_seconds", train.timeout_seconds), ("log.peak_tflops", config.log.peak_tflops)):
        if limit is not None and limit <= 0:
            raise UserError(f"is {limit}", where=where, fix="it must be positive")
    name = run_name(config)
    if "/" in name or name in (".", ".."):
        raise UserError(f"is {name!r}", where="run.name", fix="it names one folder; put the path into run.dir")


def _validate_checkpoint(config: Config) -> None:
    keys = config.checkpoint
    every = keys.every_steps
    if not (every == "auto" or (isinstance(every, int) and every >= 0)):
        raise UserError(f"is {every!r}", where="checkpoint.every_steps", fix="give auto, or a number of steps from 0")
    for where, value, least in (
        ("checkpoint.keep", keys.keep, 1),
        ("checkpoint.keep_every", keys.keep_every, 0),
        ("restart.without_progress", config.restart.without_progress, 0),
        ("restart.delay_seconds", config.restart.delay_seconds, 0),
    ):
        if value < least:
            raise UserError(f"is {value}", where=where, fix=f"it starts at {least}")
    for where, seconds in (
        ("checkpoint.failure_hours", keys.failure_hours),
        ("checkpoint.restart_seconds", keys.restart_seconds),
        ("checkpoint.deadline_seconds", keys.deadline_seconds),
        ("checkpoint.time_limit_seconds", keys.time_limit_seconds),
    ):
        if seconds is not None and seconds <= 0:
            raise UserError(f"is {seconds}", where=where, fix="it must be positive")
    if keys.resume not in ("auto", "never"):
        from isthmus.train.resuming import at_path

        at_path(Path(keys.resume))


def _validate_machine(config: Config, local_ranks: int) -> None:
    use_device(config.train.device)
    import torch  # late: a wrong key should not wait for it

    cuda = torch.cuda.is_available()
    if config.train.device is Device.cuda and not cuda:
        raise UserError("there is no CUDA device here", where="train.device=cuda", fix="use auto or cpu")
    if cuda and local_ranks > torch.cuda.device_count() > 1:
        raise UserError(
            f"{local_ranks} ranks and {torch.cuda.device_count()} GPUs on this machine",
            where="world size",
            fix="start one rank per GPU, or use train.device=cpu",
        )
    cores = os.cpu_count() or 1
    if config.train.threads is not None and config.train.threads > cores:
        raise UserError(f"is {config.train.threads} of {cores} cores", where="train.threads", fix="choose fewer")
    from isthmus.parallelism.machine import has_transformer_engine

    for name in ("mask_documents", "reset_positions"):
        if getattr(config.data, name) and has_transformer_engine():
            raise UserError(
                "transformer-engine's attention is not told of documents", where=f"data.{name}", fix="unset it"
            )
    validate_device(config.parallel, config.train.precision, cuda=cuda, transformer_engine=has_transformer_engine())


def _validate_optim(optim: OptimConfig) -> None:
    if optim.learning_rate <= 0:
        raise UserError(f"is {optim.learning_rate}", where="optim.learning_rate", fix="it must be positive")
    if optim.epsilon <= 0:
        raise UserError(f"is {optim.epsilon}", where="optim.epsilon", fix="it must be positive")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(optim, name) < 1:
            raise UserError(f"is {getattr(optim, name)}", where=f"optim.{name}", fix="choose from 0 to below 1")
    for name in ("weight_decay", "clip_grad_norm"):
        if getattr(optim, name) < 0:
            raise UserError(f"is {getattr(optim, name)}", where=f"optim.{name}", fix="0 turns it off")
