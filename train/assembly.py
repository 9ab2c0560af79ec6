"""From a configuration to a Run: builds every part and takes it down again."""

import datetime
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from typing import TextIO

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from rich.console import Console

from isthmus.config import to_yaml
from isthmus.data.audit import Journal
from isthmus.data.loader import MixtureLoader
from isthmus.data.shares import Division
from isthmus.fault_tolerance.chaos import Chaos
from isthmus.fault_tolerance.guard import StepGuard
from isthmus.fault_tolerance.heartbeat import Heartbeat, forget_heartbeats
from isthmus.fault_tolerance.ledger import RunLedger
from isthmus.fault_tolerance.stragglers import Stragglers
from isthmus.fault_tolerance.watchdog import NoWatchdog, Watchdog
from isthmus.files import write_atomically, write_json
from isthmus.parallelism.engine import Engine
from isthmus.parallelism.flops import count_parameters, model_flops_per_token
from isthmus.parallelism.groups import site_groups
from isthmus.processes import attempt_id, started_at
from isthmus.train.checkpointing import RunCheckpointer
from isthmus.train.config import Config, site_name, tokens_per_step
from isthmus.train.evaluation import held_out_losses
from isthmus.train.hardware import peak_flops
from isthmus.train.loop import Progress, Run
from isthmus.train.metrics import Metrics
from isthmus.train.observers import Observers
from isthmus.train.parts import Verdict
from isthmus.train.progress import ConsoleProgress
from isthmus.train.rewinding import RunRewinds
from isthmus.train.schedules import Schedule
from isthmus.train.sites import join_sites
from isthmus.train.stop import StopRequest
from isthmus.train.timeouts import floor_seconds, suspicion_seconds
from isthmus.train.validate import Plan, load_corpus, only_writer, prepare_folder
from isthmus.units import format_count


@dataclass(frozen=True)
class World:
    """This process among the ranks of its site, as torchrun tells it."""

    rank: int
    size: int

    @classmethod
    def from_environment(cls) -> "World":
        return cls(rank=int(os.environ.get("RANK", 0)), size=int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def build_run(config: Config, plan: Plan, world: World, console: Console, stop: StopRequest) -> Iterator[Run]:
    """Build this rank's Run; at the end close its files and leave its process groups."""
    with ExitStack() as stack:
        _configure_torch(config)
        prepare_folder(plan.folder)
        if world.rank == 0:
            stack.enter_context(only_writer(plan.folder))
            # An earlier attempt's outcome must not be taken for this one's, should this one die without a word.
            ours = {"status": "running", "rank": 0, "process": os.getpid(), "attempt_id": attempt_id()}
            write_json(plan.folder / "outcome.json", ours)
            forget_heartbeats(plan.folder, world.size)
        log = _log_to_file(plan, world)
        watchdog = _watchdog(config, plan, world, log)
        stack.callback(watchdog.close)
        heartbeat = stack.enter_context(Heartbeat(plan.folder, world.rank).beating())
        corpus, mixture = load_corpus(config, plan)
        journal = Journal(
            plan.folder, world.rank, writes_attempts=world.rank == 0, log_samples=_logs_samples(config, plan, world)
        )
        tell = (lambda line: console.print(line, highlight=False)) if world.rank == 0 else logging.info
        fingerprints = {name: source.fingerprint for name, source in corpus.sources.items()}
        sync = stack.enter_context(join_sites(config, plan, world.rank, world.size, tell, fingerprints))
        timeout = datetime.timedelta(seconds=config.train.timeout_seconds)
        groups = stack.enter_context(site_groups(plan.topology, rank=world.rank, timeout=timeout))
        engine = build_engine(config, groups)
        loader = MixtureLoader(
            corpus,
            mixture,
            config.data,
            sequence_length=config.train.sequence_length,
            global_batch=config.train.global_batch,
            micro_batch=config.train.micro_batch,
            division=Division(plan.topology.data, plan.shares),
            site=plan.site,
            rank=plan.topology.data_rank(world.rank),
            journal=journal,
            tell=tell,
        )
        progress = Progress()
        chaos = _chaos(config, plan, world, engine)

        def entered(phase: str) -> None:
            step = progress.step + (phase == "data")  # which is drawn before it is counted
            watchdog.enter(phase, step)
            chaos.enter(phase, step)

        ledger = RunLedger(None if world.rank else plan.folder / "ledger.jsonl", started_at(), entered)
        stack.callback(ledger.close, "failed")  # unless it was closed before
        observers = _observers(config, plan, world, console, ledger, engine, heartbeat)
        stack.callback(observers.close)
        rewinds = RunRewinds(
            config.guard,
            plan.folder,
            loader,
            site=site_name(config),
            global_batch=config.train.global_batch,
            tell=tell,
        )
        checkpointer = RunCheckpointer(config, plan, engine, sync, tell, rewinds, faults=chaos.of_saves())
        stack.callback(checkpointer.close)
        run = Run(
            engine=engine,
            loader=loader,
            learning_rate=_by_updates(config, plan),
            total_steps=plan.steps,
            observer=observers,
            evaluate_every=config.eval.every_steps,
            stop_requested=stop,
            sync=sync,
            checkpointer=checkpointer,
            guard=StepGuard(
                config.guard,
                skip=Verdict.skip,
                proceed=Verdict.proceed,
                tell=tell,
                record=observers.decided,
                go_back=rewinds.ask,
                rewinds=lambda: rewinds.count,
            ),
            ledger=ledger,
            progress=progress,
        )
        if config.eval.every_steps:
            held_out = loader.held_out(
                config.eval.samples,
                multiple=plan.topology.pipeline,
                # Each site evaluates on all of it: the figures are the same, and none has to wait for another.
                part=plan.topology.data_rank(world.rank),
                parts=plan.topology.data,
            )
            sources = list(corpus.sources)
            run.evaluate = lambda: held_out_losses(engine, held_out, sources)
        try:
            yield run
        except RuntimeError as error:
            watchdog.explain(error)
            raise


def build_engine(config: Config, groups: ProcessGroupCollection) -> Engine:
    """Build the engine that a configuration describes, on the process groups of this rank."""
    return Engine(
        model=config.model,
        parallel=config.parallel,
        optim=config.optim,
        groups=groups,
        precision=config.train.precision,
        fp8_recipe=config.train.fp8_recipe,
        sequence_length=config.train.sequence_length,
        micro_batch=config.train.micro_batch,
        seed=config.train.seed,
        deterministic=config.train.deterministic,
        mask_documents=config.data.mask_documents,
        reset_positions=config.data.reset_positions,
    )


def _logs_samples(config: Config, plan: Plan, world: World) -> bool:
    """One rank of those that read the same samples keeps their numbers: the first of its data-parallel rank."""
    topology = plan.topology
    firsts = {topology.data_rank(rank): rank for rank in reversed(range(world.size))}
    return config.data.log_samples and firsts[topology.data_rank(world.rank)] == world.rank


def _configure_torch(config: Config) -> None:
    if config.parallel.tensor > 1:
        # Megatron overlaps by the order of launches, which holds only if there is one queue; read when CUDA starts.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    if config.train.deterministic:
        # cuBLAS, transformer-engine and NCCL each have a switch of their own (Megatron-LM, --deterministic-mode).
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
        os.environ.setdefault("NCCL_ALGO", "Ring")
        torch.use_deterministic_algorithms(True)


def _log_to_file(plan: Plan, world: World) -> TextIO:
    """Send this rank's log and the libraries' warnings to a file, so that the console is left to the run."""
    folder = plan.folder / "logs"
    folder.mkdir(exist_ok=True)
    handler = logging.FileHandler(folder / f"rank-{world.rank:05d}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    assert isinstance(handler.stream, TextIOWrapper)
    return handler.stream


def _watchdog(config: Config, plan: Plan, world: World, log: TextIO) -> NoWatchdog:
    if not config.watchdog.enabled:
        return NoWatchdog()
    return Watchdog(
        config.watchdog,
        floor_seconds=floor_seconds(config),
        floors={"checkpoint": config.checkpoint.deadline_seconds + config.watchdog.grace_seconds},
        suspicion_seconds=suspicion_seconds(config),
        rank=world.rank,
        size=world.size,
        folder=plan.folder,
        log=log,
    )


def _chaos(config: Config, plan: Plan, world: World, engine: Engine) -> Chaos:
    topology = plan.topology

    def copies(rank: int) -> list[int]:
        """Ranks that read the same samples and hold the same layers."""
        place = topology.data_rank(rank), topology.pipeline_rank(rank)
        return [
            other for other in range(world.size) if place == (topology.data_rank(other), topology.pipeline_rank(other))
        ]

    chaos = Chaos(config.chaos, plan.folder, rank=world.rank, site=site_name(config), copies=copies)
    chaos.attach([parameter for chunk in engine.chunks for parameter in chunk.parameters()])
    for line in chaos.describe():
        print(f"isthmus: {line}", file=sys.stderr, flush=True)
    return chaos


def _by_updates(config: Config, plan: Plan) -> Callable[[int], float]:
    """The schedule is written in tokens; an update stands for a full batch of them, so that masks do not stretch it."""
    schedule = Schedule(config.schedule, peak=config.optim.learning_rate, total_tokens=plan.total_tokens)
    return lambda updates: schedule(updates * tokens_per_step(config))


def _observers(
    config: Config,
    plan: Plan,
    world: World,
    console: Console,
    ledger: RunLedger,
    engine: Engine,
    heartbeat: Heartbeat,
) -> Observers:
    stragglers = _stragglers(config, plan, world, engine)
    if world.rank:
        return Observers(None, None, ledger, heartbeat, stragglers, engine)
    write_atomically(plan.folder / "config.yaml", to_yaml(config).encode())
    peak = config.log.peak_tflops * 1e12 if config.log.peak_tflops else peak_flops(config.train.precision)
    metrics = Metrics(
        plan.folder,
        site=site_name(config),
        flops_per_token=model_flops_per_token(config.model, config.train.sequence_length),
        peak_flops=peak * world.size * plan.sites if peak else None,
        every_steps=config.log.every_steps,
        tensorboard=config.log.tensorboard,
    )
    topology = plan.topology
    of_sites = f"{config.sync.kind.name} sync of {plan.sites} sites, each " if plan.sites > 1 else ""
    console.print(
        f"{config.model.name}: {format_count(count_parameters(config.model))} parameters, "
        f"{format_count(plan.total_tokens)} tokens in {plan.steps} steps, "
        f"{of_sites}TP {topology.tensor} x PP {topology.pipeline} x CP {topology.context} x DP {topology.data}, "
        f"{config.train.precision.name} on {'cuda' if torch.cuda.is_available() else 'cpu'}",
        highlight=False,
    )
    if metrics.attempt > 1:
        console.print(
            f"attempt {metrics.attempt}: the rows of earlier ones stay in metrics.jsonl",
            highlight=False,
        )
    return Observers(metrics, ConsoleProgress(console, plan.steps), ledger, heartbeat, stragglers, engine)


def _stragglers(config: Config, plan: Plan, world: World, engine: Engine) -> Stragglers | None:
    if world.size == 1 or not config.watchdog.compare_every:
        return None

    def sum_over_ranks(values: list[float]) -> list[float]:
        return list(engine.sum_over_ranks(torch.tensor(values, dtype=torch.float64)).tolist())

    stages = [plan.topology.pipeline_rank(rank) for rank in range(world.size)]
    return Stragglers(world.rank, stages, every=config.watchdog.compare_every, sum_over_ranks=sum_over_ranks)
