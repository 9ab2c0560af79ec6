"""The learning rate at the corners of the three shapes, and what is refused."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest

from isthmus.errors import UserError
from isthmus.train.config import ScheduleConfig, ScheduleKind
from isthmus.train.schedules import Schedule, validate_schedule

_PEAK = 2.0
_TOTAL = 1_000
_KINDS = list(ScheduleKind)


def _schedule(kind: ScheduleKind, **fields: Any) -> Schedule:
    return Schedule(ScheduleConfig(kind=kind, **fields), peak=_PEAK, total_tokens=_TOTAL)


def test_cosine_at_its_corners() -> None:
    schedule = _schedule(ScheduleKind.cosine, warmup_tokens=200, final_fraction=0.1)
    assert [schedule(tokens) for tokens in (1, 100, 200)] == [_PEAK / 200, _PEAK / 2, _PEAK]
    # final + (1 - final) (1 + cos(pi progress)) / 2 at progress 1/4, 1/2, 1
    assert schedule(400) == pytest.approx(_PEAK * (0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2))
    assert schedule(600) == pytest.approx(_PEAK * 0.55)
    assert schedule(1_000) == _PEAK * 0.1


def test_wsd_at_its_corners() -> None:
    schedule = _schedule(ScheduleKind.wsd, warmup_tokens=100, decay_fraction=0.4, final_fraction=0.2)
    assert [schedule(tokens) for tokens in (50, 100, 350, 600)] == [_PEAK / 2, _PEAK, _PEAK, _PEAK]
    # arXiv 2405.18392, equation 1: 1 - sqrt(progress), here down to final_fraction; progress 1/4, 1/400
    assert schedule(700) == pytest.approx(_PEAK * (0.2 + 0.8 * 0.5))
    assert schedule(601) == pytest.approx(_PEAK * (0.2 + 0.8 * (1 - 0.05)))
    assert schedule(1_000) == pytest.approx(_PEAK * 0.2)


def test_constant_after_warm_up() -> None:
    schedule = _schedule(ScheduleKind.constant, warmup_tokens=10, final_fraction=0.1)
    assert [schedule(tokens) for tokens in (5, 10, 500, 1_000)] == [_PEAK / 2, _PEAK, _PEAK, _PEAK]


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("warmup_tokens", [0, 1, 200])
@pytest.mark.parametrize("final_fraction", [0.0, 0.3])
def test_rises_then_falls_and_ends_exactly(kind: ScheduleKind, warmup_tokens: int, final_fraction: float) -> None:
    schedule = _schedule(kind, warmup_tokens=warmup_tokens, final_fraction=final_fraction)
    rates = [schedule(tokens) for tokens in range(1, _TOTAL + 1)]
    top = max(warmup_tokens - 1, 0)
    assert rates[0] > 0, "the first step would be wasted"
    assert min(rates) >= 0
    assert rates[top] == pytest.approx(_PEAK, rel=1e-4)  # a cosine is 2e-6 below it after 1 of 1,000
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    assert rates[-1] == (_PEAK if kind is ScheduleKind.constant else _PEAK * final_fraction)
    # A run that goes on a little (tokens rounded up to a step) stays where it ended.
    assert schedule(_TOTAL + 50) == rates[-1]


def test_lengths_follow_from_fractions_unless_tokens_are_given() -> None:
    schedule = _schedule(ScheduleKind.wsd, warmup_fraction=0.05, decay_fraction=0.3)
    assert (schedule.warmup_tokens, schedule.decay_tokens) == (50, 300)
    assert _schedule(ScheduleKind.wsd, warmup_fraction=0.05, warmup_tokens=0).warmup_tokens == 0


def test_no_decay_is_constant() -> None:
    schedule = _schedule(ScheduleKind.wsd, warmup_tokens=0, decay_fraction=0.0)
    assert schedule(_TOTAL) == _PEAK


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_fraction": 1.1}, "schedule.warmup_fraction: is 1.1"),
        ({"decay_fraction": -0.1}, "schedule.decay_fraction: is -0.1"),
        ({"final_fraction": 2.0}, "schedule.final_fraction: is 2.0"),
        ({"final_fraction": float("nan")}, "schedule.final_fraction: is nan"),
        ({"warmup_tokens": -1}, "schedule.warmup_tokens: is -1"),
        ({"warmup_tokens": 1_001}, "warm-up 1001 + decay 0 tokens exceed the run's 1000"),
        (
            {"kind": ScheduleKind.wsd, "warmup_tokens": 801, "decay_fraction": 0.2},
            "warm-up 801 + decay 200 tokens exceed the run's 1000",
        ),
    ],
)
def test_schedules_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        validate_schedule(ScheduleConfig(**fields), _TOTAL)


@pytest.mark.parametrize("kind", _KINDS)
def test_schedules_that_fit(kind: ScheduleKind) -> None:
    validate_schedule(ScheduleConfig(kind=kind, warmup_tokens=800, decay_fraction=0.2), _TOTAL)
    if kind is not ScheduleKind.wsd:  # only wsd decays at the end
        validate_schedule(ScheduleConfig(kind=kind, warmup_tokens=1_000, decay_fraction=1.0), _TOTAL)
