"""Arithmetic of the guard, the ledger, the retry budget and the interval between saves."""

import random
from pathlib import Path
from typing import Any

import pytest

from isthmus.errors import (
    EXIT_BUG,
    EXIT_HANG,
    EXIT_OK,
    EXIT_REQUEUE,
    EXIT_REWIND,
    EXIT_SITE_LOST,
    EXIT_USER_ERROR,
    UserError,
)
from isthmus.fault_tolerance.guard import GuardConfig, Response, StepGuard, robust_score, validate_guard
from isthmus.fault_tolerance.interval import daly_interval, expected_goodput, young_interval
from isthmus.fault_tolerance.ledger import RunLedger, describe, read_rows, summarize
from isthmus.fault_tolerance.policy import Action, RetryBudget, rule_for


@pytest.mark.parametrize(("failure_minutes", "interval_minutes"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_dalys_interval_is_the_published_one(failure_minutes: float, interval_minutes: float) -> None:
    # Daly 2006: a save of 5 minutes
    assert daly_interval(300, 60 * failure_minutes) / 60 == pytest.approx(interval_minutes, abs=0.6)


def test_dalys_interval_is_the_best_of_its_own_model() -> None:
    stall, failure, restart = 30.0, 3600.0, 60.0
    best = daly_interval(stall, failure)
    goodput = expected_goodput(best, stall, failure, restart)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert goodput >= expected_goodput(best * factor, stall, failure, restart)
    assert young_interval(stall, failure) == pytest.approx(best, rel=0.1)
    assert daly_interval(3600, 1000) == 1000


def guard(**keys: Any) -> tuple[StepGuard, list[str]]:
    told: list[str] = []
    return StepGuard(GuardConfig(**keys), skip="skip", proceed="proceed", tell=told.append), told


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("culprit", ["loss", "gradient norm"])
def test_a_number_that_is_not_finite_ends_the_run_or_is_skipped(value: float, culprit: str) -> None:
    loss, norm = (value, 1.0) if culprit == "loss" else (1.0, value)
    with pytest.raises(UserError, match=f"step 7: the {culprit} is {value}"):
        guard()[0].inspect(7, loss, norm)
    skipping, told = guard(nonfinite=Response.skip)
    assert skipping.inspect(7, loss, norm) == "skip"
    assert f"the {culprit} is {value}" in told[0]


def test_spikes_and_explosions_are_skipped_and_noise_is_not() -> None:
    judge, told = guard(spike=Response.skip, explosion=Response.skip, window=20)
    noise = random.Random(1)
    for step in range(1, 101):
        assert judge.inspect(step, 3.0 + 0.05 * noise.gauss(0, 1), 1.0 + 0.1 * noise.random()) == "proceed"
    assert judge.inspect(101, 6.0, 1.0) == "skip"
    assert judge.inspect(102, 3.0, 50.0) == "skip"
    assert judge.inspect(103, 3.0, 1.0) == "proceed"
    assert judge.inspect(104, 1.0, 1.0) == "proceed"  # a loss that falls is no spike
    assert len(told) == 2


def test_a_skipped_step_does_not_move_the_medians() -> None:
    judge, _ = guard(spike=Response.skip, window=4, max_skips=100)
    for step in range(4):
        judge.inspect(step, 2.0 + 0.01 * step, 1.0)
    assert [judge.inspect(step, 9.0, 1.0) for step in range(4, 20)] == ["skip"] * 16


def test_the_budget_of_skips_ends_the_run_and_old_skips_are_forgiven() -> None:
    judge, _ = guard(nonfinite=Response.skip, max_skips=2, window=4)
    for step in (1, 2, 100, 101):
        assert judge.inspect(step, float("nan"), 1.0) == "skip"
    with pytest.raises(UserError, match="2 batches were skipped already"):
        judge.inspect(102, float("nan"), 1.0)


def test_going_back_is_asked_for_once_and_nothing_is_trained_on_until_then() -> None:
    asked: list[tuple[int, str]] = []
    recorded: list[tuple[int, str]] = []
    judge = StepGuard(
        GuardConfig(spike=Response.rewind, explosion=Response.rewind, nonfinite=Response.rewind, window=4),
        skip="skip",
        proceed="proceed",
        tell=lambda line: None,
        record=lambda step, decision, why: recorded.append((step, decision)),
        go_back=lambda step, why: asked.append((step, why)),
    )
    for step in range(4):
        assert judge.inspect(step, 2.0, 1.0) == "proceed"
    assert not judge.rewinding()
    assert judge.inspect(5, 9.0, 1.0) == "skip"
    assert judge.rewinding()
    # Other sites may have to come to the same step first.
    assert judge.inspect(6, float("nan"), 1.0) == judge.inspect(7, 2.0, 1.0) == "skip"
    assert [step for step, _ in asked] == [5]
    assert "deviations above the last ones" in asked[0][1]
    assert recorded == [(5, "rewind")]


def test_the_budget_of_rewinds_ends_the_run() -> None:
    decisions: list[str] = []
    judge = StepGuard(
        GuardConfig(nonfinite=Response.rewind, max_rewinds=3),
        skip="skip",
        proceed="proceed",
        tell=lambda line: None,
        record=lambda step, decision, why: decisions.append(decision),
        rewinds=lambda: 3,
    )
    with pytest.raises(UserError, match="the loss is nan, and the run went back 3 times already"):
        judge.inspect(9, float("nan"), 1.0)
    assert not judge.rewinding()
    assert decisions == ["stop"]


def test_the_guard_remembers_over_a_restart() -> None:
    before, _ = guard(spike=Response.skip, window=4)
    for step in range(4):
        before.inspect(step, 2.0, 1.0)
    after, _ = guard(spike=Response.skip, window=4)
    after.load_state_dict(before.state_dict())
    assert after.inspect(5, 9.0, 1.0) == "skip"


@pytest.mark.parametrize("keys", [{"nonfinite": Response.off}, {"window": 1}, {"spike_deviations": 0.0}])
def test_thresholds_that_mean_nothing_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(keys))):
        validate_guard(GuardConfig(**keys))


def test_robust_score_of_a_normal_distribution_is_its_deviations() -> None:
    noise = random.Random(0)
    past = [noise.gauss(10, 2) for _ in range(4000)]
    assert robust_score(16, past) == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (EXIT_OK, Action.end),
        (EXIT_USER_ERROR, Action.end),
        (EXIT_REQUEUE, Action.requeue),
        (EXIT_SITE_LOST, Action.restart),
        (EXIT_BUG, Action.restart),
        (EXIT_HANG, Action.restart),
        (EXIT_REWIND, Action.restart),
        (-9, Action.restart),
        (77, Action.restart),
    ],
)
def test_policy(code: int, action: Action) -> None:
    assert rule_for(code).action is action


def test_restarts_without_progress_are_counted_and_progress_forgives() -> None:
    budget = RetryBudget(3)
    assert [budget.allows(rule_for(-9), 10) for _ in range(3)] == [True] * 3
    assert budget.allows(rule_for(-9), 11)
    assert [budget.allows(rule_for(1), 11) for _ in range(3)] == [True, True, False]


def test_going_back_costs_nothing_and_what_follows_counts_as_new() -> None:
    budget = RetryBudget(2)
    assert budget.allows(rule_for(EXIT_REWIND), 100)
    assert budget.allows(rule_for(1), 60)  # beyond the checkpoint that it went back to
    assert budget.allows(rule_for(1), 70)
    assert budget.allows(rule_for(1), 70)
    assert not budget.allows(rule_for(1), 70)


def test_waiting_for_another_site_costs_nothing() -> None:
    budget = RetryBudget(1)
    assert all(budget.allows(rule_for(EXIT_SITE_LOST), 5) for _ in range(50))
    assert budget.allows(rule_for(1), 5)
    assert not budget.allows(rule_for(1), 5)
    assert not RetryBudget(0).allows(rule_for(-9), 5)


def row(what: str, step: int, started: float, now: float, **seconds: Any) -> dict[str, Any]:
    return {"what": what, "step": step, "started": started, "time": now, **seconds}


def test_the_ledger_books_every_second_once() -> None:
    first = [
        row("begin", 0, 0, 10, init=10.0),
        *(row("step", step, 0, 10 + 5 * step, compute=4.0, checkpoint=0.5, other=0.5) for step in (1, 2, 3)),
    ]  # killed at 25, after step 3; step 1 alone was saved
    second = [
        row("begin", 1, 27, 35, init=8.0),
        *(row("step", step, 27, 35 + 5 * (step - 1), compute=5.0) for step in (2, 3)),
        row("end", -1, 27, 45, status="completed"),
    ]
    third = [row("begin", 3, 145, 150, init=5.0), row("end", -1, 145, 150, status="completed")]
    total = summarize(first + second + third)
    assert total["lost"] == 8.0  # the compute of steps 2 and 3 of the first attempt
    assert total["recovery"] == 2.0 + 8.0
    assert total["idle"] == 100.0
    assert total["compute"] == 4.0 + 10.0
    assert total["init"] == 15.0
    assert total["elapsed"] == 150.0
    causes = {name: seconds for name, seconds in total.items() if name not in ("elapsed", "goodput")}
    assert sum(causes.values()) == pytest.approx(150.0)
    assert total["goodput"] == pytest.approx(14 / 150)


def test_the_guards_decisions_are_in_the_ledger_and_its_summary(tmp_path: Path) -> None:
    entered: list[str] = []
    ledger = RunLedger(tmp_path / "ledger.jsonl", 0.0, entered.append)
    ledger.begin(0)
    with ledger.book("data"):
        pass
    ledger.decided(1, "skip", "the loss is nan")
    ledger.step(1)
    ledger.decided(2, "rewind", "the loss is high")
    ledger.close("rewound")
    assert entered == ["other", "data", "other"]  # what watches for hangs hears of every phase
    totals = summarize(read_rows(tmp_path / "ledger.jsonl"))
    assert (totals["guard_skip"], totals["guard_rewind"]) == (1, 1)
    assert describe(totals).endswith("; guard: 1 skipped batch(es), 1 rewind(s)")


def test_steps_that_a_rewind_undoes_are_lost_work_and_the_way_back_is_recovery() -> None:
    rows = [
        row("begin", 0, 0, 10, init=10.0),
        *(row("step", step, 0, 10 + 5 * step, compute=5.0) for step in (1, 2, 3)),
        row("guard", 3, 0, 25, decision="rewind", why=""),
        row("end", -1, 0, 25, status="rewound"),
        row("begin", 1, 27, 33, init=6.0),
        *(row("step", step, 27, 33 + 5 * (step - 1), compute=5.0) for step in (2, 3)),
        row("end", -1, 27, 43, status="completed"),
    ]
    total = summarize(rows)
    assert (total["lost"], total["recovery"], total["idle"], total["compute"]) == (10, 8, 0, 15)
    assert total["guard_rewind"] == 1
