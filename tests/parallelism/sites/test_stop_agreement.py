"""All sites stop after the same step, wherever each of them is when one wants to."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lanes import lanes

from isthmus.parallelism.sites.agreement import StopAgreement
from isthmus.parallelism.sites.lane import LaneError
from isthmus.parallelism.sites.tcp import TcpLane

ROUND_TAGS = 1000


def train(lane: TcpLane, agreement: StopAgreement, wants_at: int, every: int, total: int) -> int:
    """Go through steps that meet the other sites every so often; return the step after which this site stopped."""
    for step in range(1, total + 1):
        if step % every == 0:
            lane.exchange(
                ROUND_TAGS + step, {peer: b"round" for peer in range(len(lane.names)) if peer != lane.site}
            ).wait()
        if step < total and agreement.stop_after(step, step >= wants_at):
            return step
    return total


@settings(deadline=None, max_examples=25)
@given(
    wishes=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    every=st.integers(1, 12),
)
def test_sites_stop_after_the_same_step(wishes: list[int], every: int) -> None:
    with lanes(len(wishes)) as opened, ThreadPoolExecutor(len(wishes)) as pool:
        agreements = [StopAgreement(lane) for lane in opened]
        ends = list(pool.map(lambda n: train(opened[n], agreements[n], wishes[n], every, 30), range(len(wishes))))
    assert len(set(ends)) == 1
    # Nobody goes on for long: a site that nobody holds up may be a round ahead, and the step in progress ends.
    assert ends[0] <= min(30, min(wishes) + 30)
    if min(wishes) >= 30:
        assert ends[0] == 30


def test_a_site_inside_a_step_answers_at_once() -> None:
    """It may be waiting for the one that asks."""
    with lanes(2) as (first, second):
        asking, busy = StopAgreement(first), StopAgreement(second)
        busy.begin(7)
        answered = threading.Event()
        end: list[bool] = []

        def ask() -> None:
            end.append(asking.stop_after(5, True))
            answered.set()

        threading.Thread(target=ask, daemon=True).start()
        assert answered.wait(10), "the other one is in the middle of step 8"
        assert end == [False]  # step 8 is where both stop
        assert [asking.stop_after(step, True) for step in (6, 7, 8)] == [False, False, True]
        assert busy.stop_after(8, False) is True


def test_a_site_that_is_gone_cannot_agree() -> None:
    with lanes(2) as (first, second):
        agreement = StopAgreement(first)
        second.close()
        with pytest.raises(LaneError, match="site1"):
            agreement.stop_after(1, True)
