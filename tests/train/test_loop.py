"""The loop with fakes: the order of calls, and what skipping, stopping and evaluating change."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from isthmus.errors import UserError
from isthmus.parallelism.engine import StepLoss
from isthmus.train.loop import Run, train
from isthmus.train.parts import FiniteGuard, Verdict
from isthmus.train.report import StepReport

_QUESTIONS = ("mix", "report", "exposed_reduction_seconds", "tokens_of_all_sites", "rewinding")  # at no particular time
_STATEFUL = "guard+loader+progress+sync"


@dataclass
class Script:
    """Plays every part of a run and writes down each call as `part.method arguments`."""

    skip_at: tuple[int, ...] = ()  # the guard says skip
    no_tokens_at: tuple[int, ...] = ()
    stop_at: int | None = None  # a signal during this step
    stop_elsewhere_at: int | None = None  # another rank's signal
    stop_site_at: int | None = None  # another site's signal
    rewind_at: int | None = None  # the guard wants to go back behind this step
    restored: dict[str, Any] | None = None
    calls: list[str] = field(default_factory=list)
    reports: list[StepReport] = field(default_factory=list)
    drawn: int = 0

    def run(self, total_steps: int, **fields: Any) -> Run:
        parts: dict[str, Any] = {
            "engine": _Part(self, "engine", forward_backward=self._loss, gradient_norm=1.5, any_rank=self._any_rank),
            "loader": _Part(self, "loader", next_step=self._draw, mix=lambda: {"web": 2 * self.drawn}),
            # The other site has as many tokens, and a loss of 5.
            "sync": _Part(
                self,
                "sync",
                reduce=lambda _, own: StepLoss(own.loss_sum + 5.0 * own.tokens, 2 * own.tokens),
                tokens_of_all_sites=lambda total: total.tokens,
                stop_after=lambda step, wanted: wanted or step == self.stop_site_at,
                outer_parameters=nullcontext,
            ),
            "guard": _Part(
                self,
                "guard",
                rewinding=lambda: self.drawn == self.rewind_at,
                inspect=lambda step, *_: Verdict.skip if step in self.skip_at else None,
            ),
            "checkpointer": _Part(self, "checkpointer", restore=self._restore),
            "ledger": _Part(self, "ledger", book=self._book),
            "observer": _Part(self, "observer", step=lambda report, _: self.reports.append(report)),
            "learning_rate": lambda updates: 0.5 * updates,
            "stop_requested": lambda: self.drawn == self.stop_at,
        }
        return Run(total_steps=total_steps, **(parts | fields))

    def only(self, *beginnings: str) -> list[str]:
        return [call for call in self.calls if call.startswith(beginnings)]

    def _draw(self) -> list[str]:
        self.drawn += 1
        return [f"batch {self.drawn}"]

    def _loss(self, microbatches: list[str]) -> StepLoss:
        tokens = 0 if self.drawn in self.no_tokens_at else 10
        return StepLoss(3.0 * tokens, tokens)

    def _any_rank(self, flag: bool) -> bool:
        return flag or self.drawn == self.stop_elsewhere_at

    def _restore(self, parts: dict[str, Any]) -> None:
        if self.restored:
            parts["progress"].load_state_dict(self.restored)

    @contextmanager
    def _book(self, cause: str) -> Any:
        yield
        self.calls.append(f"/{cause}")


class _Part:
    def __init__(self, script: Script, name: str, **answers: Any) -> None:
        self.script, self.name, self.answers = script, name, answers

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            shown = [_show(value) for value in (*args, *named.values())]
            if method not in _QUESTIONS:
                self.script.calls.append(" ".join([f"{self.name}.{method}", *shown]))
            answer = self.answers.get(method)
            return answer(*args, **named) if callable(answer) else answer

        return call


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "+".join(sorted(value))
    return str(value.step) if isinstance(value, StepReport) else getattr(value, "name", str(value))


def test_order_of_calls_in_a_run_of_one_step() -> None:
    script = Script()
    assert train(script.run(1)) is True
    # DESIGN.md, "A step, as data flows"
    assert script.calls == [
        "sync.attach engine",
        f"checkpointer.restore {_STATEFUL}",
        "sync.begin 0",
        "observer.start 0 0 None",
        *("ledger.book data", "loader.next_step", "/data"),
        *("ledger.book compute", "engine.forward_backward ['batch 1']", "/compute"),
        *("ledger.book sync", "sync.reduce 1 StepLoss(loss_sum=30.0, tokens=10)", "/sync"),
        "ledger.book compute",
        *("engine.gradient_norm 20", "guard.inspect 1 4.0 1.5", "engine.step 0.5"),  # both sites' tokens and loss
        "/compute",
        *("ledger.book sync", "sync.after_step 1 True", "/sync"),
        "observer.step 1 None",
        *("ledger.book checkpoint", f"checkpointer.after_step 1 {_STATEFUL} True", "/checkpoint"),
    ]


def test_reports_count_all_sites() -> None:
    script = Script()
    train(script.run(2))
    last = script.reports[-1]
    assert (last.step, last.tokens, last.step_tokens, last.loss, last.grad_norm) == (2, 40, 20, 4.0, 1.5)
    assert (last.learning_rate, last.skipped, last.mix) == (1.0, False, {"web": 4})
    assert last.step_seconds > 0


@pytest.mark.parametrize("script", [Script(skip_at=(2,)), Script(no_tokens_at=(2,))], ids=["guard", "no tokens"])
def test_skipped_step_changes_nothing(script: Script) -> None:
    run = script.run(3)
    assert train(run) is True
    assert script.only("engine.step", "engine.discard", "sync.after", "sync.discard") == [
        *("engine.step 0.5", "sync.after_step 1 False"),
        *("engine.discard", "sync.discard 2 False"),
        *("engine.step 1.0", "sync.after_step 3 True"),  # the learning rate that step 2 would have had
    ]
    assert [(report.tokens, report.skipped) for report in script.reports] == [(20, False), (20, True), (40, False)]
    assert run.progress.state_dict() == {"step": 3, "updates": 2, "tokens": 40}


def test_step_without_tokens_has_no_loss_to_inspect() -> None:
    script = Script(no_tokens_at=(1,))
    train(script.run(1, guard=FiniteGuard()))  # its mean would be NaN
    assert script.only("engine.step", "engine.discard") == ["engine.discard"]


@pytest.mark.parametrize(
    "script",
    [Script(stop_at=2), Script(stop_elsewhere_at=2), Script(rewind_at=2)],
    ids=["this rank", "another rank", "guard"],
)
def test_stop_request_ends_the_run_at_a_step_boundary(script: Script) -> None:
    run = script.run(5)
    assert train(run) is False
    assert run.progress.step == 2
    assert script.only("engine.any") == ["engine.any_rank False", f"engine.any_rank {script.stop_elsewhere_at != 2}"]
    assert [call.split()[1::2] for call in script.only("checkpointer.after")] == [["1", "False"], ["2", "True"]]


def test_the_wish_to_stop_is_put_to_all_sites() -> None:
    script = Script(stop_at=2)
    train(script.run(5))
    assert script.only("sync.stop") == ["sync.stop_after 1 False", "sync.stop_after 2 True"]
    assert train(Script(stop_site_at=3).run(5)) is False


def test_stop_request_in_the_last_step_comes_too_late() -> None:
    assert train(Script(stop_at=3).run(3)) is True


@pytest.mark.parametrize(("every", "evaluated"), [(2, [0, 2, 4, 5]), (5, [0, 5]), (0, [0, 5])])
def test_evaluation_before_the_first_step_every_so_many_and_at_the_end(every: int, evaluated: list[int]) -> None:
    script = Script()
    train(script.run(5, evaluate=lambda: {"web": 1.0}, evaluate_every=every))
    calls = [call for call in script.only("observer.") if call.endswith(" web")]
    assert [int(call.split()[1]) for call in calls] == evaluated
    assert len(script.only("ledger.book evaluation")) == len(evaluated)


def test_resumed_run_goes_on_where_it_was() -> None:
    script = Script(restored={"step": 3, "updates": 2, "tokens": 40})
    train(script.run(4, evaluate=lambda: {"web": 1.0}, evaluate_every=10))
    assert script.only("observer.", "engine.step") == [
        "observer.start 3 40 None",
        "engine.step 1.5",
        "observer.step 4 web",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("culprit", ["loss", "gradient norm"])
def test_finite_guard_ends_the_run_before_the_optimizer(value: float, culprit: str) -> None:
    loss, norm = (value, 1.0) if culprit == "loss" else (1.0, value)
    with pytest.raises(UserError, match=f"step 7: the {culprit} is {value}"):
        FiniteGuard().inspect(7, loss, norm)
    assert FiniteGuard().inspect(7, 1.0, 1.0) is Verdict.proceed
