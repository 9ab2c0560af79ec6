"""The training loop: what happens in a step, in order."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from isthmus.parallelism.engine import Engine, StepLoss
from isthmus.train.parts import (
    Checkpointer,
    FiniteGuard,
    Guard,
    Ledger,
    Loader,
    NoCheckpointer,
    NoLedger,
    NoSync,
    SiteSync,
    Stateful,
    Verdict,
)
from isthmus.train.report import Observer, StepReport


class Progress:
    """How far the run has come."""

    def __init__(self) -> None:
        self.step = 0  # batches drawn
        self.updates = 0  # optimizer steps: a skipped batch makes none
        self.tokens = 0  # tokens that made an update, all sites

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "updates": self.updates, "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.updates, self.tokens = state["step"], state["updates"], state["tokens"]


@dataclass(kw_only=True)
class Run:
    """Everything that the loop calls."""

    engine: Engine
    loader: Loader
    learning_rate: Callable[[int], float]  # of the number of updates, this one included
    total_steps: int
    observer: Observer
    evaluate: Callable[[], dict[str, float]] | None = None
    evaluate_every: int = 0
    stop_requested: Callable[[], bool] = lambda: False
    sync: SiteSync = field(default_factory=NoSync)
    guard: Guard = field(default_factory=FiniteGuard)
    checkpointer: Checkpointer = field(default_factory=NoCheckpointer)
    ledger: Ledger = field(default_factory=NoLedger)
    progress: Progress = field(default_factory=Progress)

    def stateful(self) -> dict[str, Stateful]:
        return {"progress": self.progress, "loader": self.loader, "sync": self.sync, "guard": self.guard}


def train(run: Run) -> bool:
    """Train to the end; return False if a stop was requested before it.

    Whether to stop, or to go back, is agreed by all ranks of all sites at a step boundary: no rank waits for another
    that has left.
    """
    run.sync.attach(run.engine)
    run.checkpointer.restore(run.stateful())
    progress = run.progress
    run.sync.begin(progress.step)
    run.observer.start(progress.step, progress.tokens, _held_out(run) if progress.step == 0 else None)
    while progress.step < run.total_steps:
        report = _step(run)
        last = progress.step == run.total_steps
        due = last or (run.evaluate_every > 0 and progress.step % run.evaluate_every == 0)
        run.observer.step(report, _held_out(run) if due else None)
        wanted = run.stop_requested() or run.guard.rewinding()
        stop = not last and run.sync.stop_after(progress.step, run.engine.any_rank(wanted))
        with run.ledger.book("checkpoint"):
            run.checkpointer.after_step(progress.step, run.stateful(), last=last or stop)
        if stop:
            return False
    return True


def _step(run: Run) -> StepReport:
    started = time.perf_counter()
    progress, engine = run.progress, run.engine
    with run.ledger.book("data"):
        microbatches = run.loader.next_step()
    progress.step += 1
    with run.ledger.book("compute"):
        own_loss = engine.forward_backward(microbatches)
    with run.ledger.book("sync"):
        loss = run.sync.reduce(progress.step, own_loss)
    with run.ledger.book("compute"):
        grad_norm = engine.gradient_norm(loss.tokens)
        learning_rate = run.learning_rate(progress.updates + 1)
        skipped = loss.tokens == 0 or run.guard.inspect(progress.step, loss.mean, grad_norm) is Verdict.skip
        if skipped:
            engine.discard()
        else:
            engine.step(learning_rate)
            progress.updates += 1
            progress.tokens += run.sync.tokens_of_all_sites(loss)
    with run.ledger.book("sync"):
        conclude = run.sync.discard if skipped else run.sync.after_step
        conclude(progress.step, last=progress.step == run.total_steps)
    return _report(run, loss, grad_norm, learning_rate, time.perf_counter() - started, skipped)


def _report(
    run: Run, loss: StepLoss, grad_norm: float, learning_rate: float, seconds: float, skipped: bool
) -> StepReport:
    return StepReport(
        step=run.progress.step,
        tokens=run.progress.tokens,
        loss=loss.mean,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        step_tokens=run.sync.tokens_of_all_sites(loss),
        step_seconds=seconds,
        skipped=skipped,
        mix=run.loader.mix(),
        reduction_seconds=run.engine.exposed_reduction_seconds(),
        wan=run.sync.report(),
    )


def _held_out(run: Run) -> dict[str, float] | None:
    if run.evaluate is None:
        return None
    with run.ledger.book("evaluation"), run.sync.outer_parameters():
        return run.evaluate()
