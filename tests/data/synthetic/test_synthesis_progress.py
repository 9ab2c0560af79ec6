"""What people are shown while it runs: counts that add up in any order, shares by stage, when it will be done."""

import io
from random import Random
from typing import Any

import pytest
from rich.console import Console

from isthmus.data.synthetic import progress as module
from isthmus.data.synthetic.journal import Spent
from isthmus.data.synthetic.progress import SynthesisProgress, describe
from isthmus.data.synthetic.statistics import KEPT, Statistics


def outcome(number: int, stage: str, **more: Any) -> dict[str, Any]:
    votes = {"one": number % 2 == 0, "two": number % 3 == 0}
    judged = (
        [{"by": name, "ok": ok, "scores": {}} for name, ok in votes.items()] if stage in ("judge", "accepted") else []
    )
    entry = {
        "index": 0, "stage": stage, "reason": "" if stage == "accepted" else "why", "repairs": 0, "first": "",
        "text": f"text {number}", "verdicts": [{"by": "v", "ok": stage != "verify"}, *judged],
        "prompt_tokens": 10, "completion_tokens": 20, "kept_tokens": 20 if stage == "accepted" else 0, **more,
    }  # fmt: skip
    return {"item": f"i{number}", "topic": f"t{number % 2}", "parents": [], "frozen": "", "tries": [entry]}


OUTCOMES = [
    *(outcome(number, "accepted") for number in range(6)),
    outcome(6, "generate"),
    outcome(7, "verify", repairs=1, first="v: odd"),
    outcome(8, "judge", repairs=1, first="v: odd"),
    outcome(9, "judge"),
]


def test_counts_do_not_depend_on_the_order() -> None:
    found = []
    for seed in range(5):
        shuffled = list(OUTCOMES)
        Random(seed).shuffle(shuffled)
        statistics = Statistics(examples_each=2)
        for entry in shuffled:
            statistics.add(entry)
        statistics.topics = dict(sorted(statistics.topics.items()))
        found.append(statistics)
    assert all(statistics == found[0] for statistics in found)
    total = found[0]
    assert total.funnel() == [("tries", 10), ("answered", 9), ("verified", 8), ("judged well", 6)]
    assert (total.verified_first, total.repaired, total.repaired_verified) == (7, 2, 1)
    assert total.topics == {"t0": [5, 3], "t1": [5, 3]}
    assert total.reasons == {"generate: why": 1, "verify: why": 1, "judge: why": 2, "repair after v: odd": 2}
    assert total.votes == {("one", "two"): [1, 3, 2, 2]}
    assert (total.spent_tokens, total.kept_tokens) == (300, 120)
    assert len(total.examples[KEPT]) == 2


def test_a_line_has_shares_by_stage_tokens_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = Statistics()
    for entry in OUTCOMES:
        statistics.add(entry)
    line = describe(statistics, Spent(requests=10, prompt_tokens=100, completion_tokens=200, cost=1.5), "3m00s")
    assert line == "answered 90%, verified 89%, judged well 75%, 300 tokens spent, 120 kept, cost 1.50, 3m00s left"
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown = io.StringIO()
    progress = SynthesisProgress(Console(file=shown, width=200))
    with progress.running(total=30, done=5):
        now[0] = 100.0
        progress.show(statistics, Spent())
        now[0] = 101.0
        progress.show(statistics, Spent())
    assert shown.getvalue().splitlines() == [
        "5 of 30 items are in the journal already",
        # 5 of this run's items took 100 s, and 20 are left.
        "items 10 of 30: answered 90%, verified 89%, judged well 75%, 0 tokens spent, 120 kept, 6m40s left",
    ]
