"""Which rank is slow, how often a run fails: arithmetic on what was measured."""

from typing import Any

import pytest

from isthmus.fault_tolerance.observed import Observed, observe, risk_of
from isthmus.fault_tolerance.stragglers import Stragglers, compare


def test_the_slowest_rank_is_compared_with_those_of_its_stage() -> None:
    # The second stage has more to do: none of its ranks is slow for that.
    seconds = [0.1, 1.0, 0.1, 1.0, 0.1, 1.9, 0.1, 3.0, 0.1, 3.0, 0.1, 3.1]
    found = compare(seconds, [0, 0, 0, 1, 1, 1])
    assert found is not None
    assert found.rank == 2
    assert found.score == pytest.approx(2.0 / 1.1)
    assert (found.data_seconds, found.forward_seconds, found.peers_seconds) == (0.1, 1.9, 1.1)
    assert "slowest rank 2: 1.82 times the median of its peers" in found.describe()
    assert list(found.scores) == [2, 5, 0, 1, 3, 4]


def test_of_two_ranks_the_faster_is_the_measure() -> None:
    found = compare([0.0, 1.0, 2.0, 1.0], [0, 0])
    assert found is not None
    assert (found.rank, found.score) == (1, 3.0)
    alone = compare([0.0, 1.0, 0.0, 2.0], [0, 1])  # each alone in its stage: compared with all
    assert alone is not None
    assert (alone.rank, alone.score) == (1, 2.0)
    assert compare([0.0, 1.0], [0]) is None


def test_ranks_are_compared_every_so_often_and_over_the_whole_run() -> None:
    reductions: list[list[float]] = []
    other = [0.0, 0.0, 0.0, 2.0]

    def add_up(mine: list[float]) -> list[float]:
        reductions.append(mine)
        return [a + b for a, b in zip(mine, other, strict=True)]

    ranks = Stragglers(0, [0, 0], every=3, sum_over_ranks=add_up)
    found = [ranks.step(step, 0.5, 0.5 * step) for step in range(1, 8)]
    assert [step for step, entry in enumerate(found, start=1) if entry is not None] == [3, 6]
    assert reductions == [[0.5, 1.0, 0.0, 0.0], [0.5, 2.5, 0.0, 0.0]]  # means over three steps
    assert found[5] is not None
    assert found[5].rank == 0
    whole = ranks.whole_run()
    assert whole is not None
    assert whole.rank == 0
    assert reductions[-1] == [0.5, 2.0, 0.0, 0.0]


def row(what: str, started: float, now: float, **fields: Any) -> dict[str, Any]:
    return {"what": what, "step": 0, "started": started, "time": now, **fields}


LEDGER = [
    *(row("begin", 0, 10), row("step", 0, 100)),  # killed
    *(row("begin", 110, 120), row("guard", 110, 130), row("end", 110, 150, status="failed")),
    *(row("begin", 160, 180), row("end", 160, 260, status="preempted")),
    *(row("begin", 1000, 1010), row("end", 1000, 1100, status="rewound")),
    *(row("begin", 1101, 1111), row("step", 1101, 1121)),
]


def test_failures_and_what_they_cost_are_read_off_the_ledger() -> None:
    seen = observe(LEDGER)
    assert seen.failures == 2  # neither the preemption nor the way back behind a spike is one
    assert seen.running_seconds == 100 + 40 + 100 + 100 + 20
    assert seen.restart_seconds == ((120 - 100) + (180 - 150)) / 2
    assert observe([]) == Observed()


def test_what_was_observed_goes_before_what_was_configured_and_is_said() -> None:
    configured = risk_of(Observed(), running_since=5, failure_seconds=21600, restart_seconds=60)
    assert configured.describe() == "a failure every 6 h that costs 1m00s to restart (configured)"
    seen = risk_of(observe(LEDGER), running_since=40, failure_seconds=21600, restart_seconds=60)
    assert (seen.failure_seconds, seen.restart_seconds) == (200, 25)
    assert seen.describe() == "a failure every 3m20s that costs 25s to restart (2 seen in this run)"
