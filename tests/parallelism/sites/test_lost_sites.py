"""A site that dies, stalls or cannot be reached ends the others, within the lane's deadline and by name."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from support.engines import compose_nano, rank_batches
from support.ranks import RankWorld
from support.sites import site_engine, site_overrides
from support.wan import Sites, sites_over_links

from isthmus.parallelism.sites.lane import LaneError

DEADLINE = 3.0
SYNCS = {
    "exact": ["sync=exact"],
    "local": ["sync=local", "sync.every=4", "sync.fragments=2", "sync.overlap_steps=1"],
}


def train_until_lost(world: RankWorld, tell: Callable[[Any], None], overrides: list[str]) -> tuple[str, str, float]:
    """Train for ever; answer with the error that ended it, and how long after the last step it came."""
    words = [f"lane.deadline_seconds={DEADLINE}", "train.micro_batch=1", "train.global_batch=12", *overrides]
    config = compose_nano(*site_overrides(world), *words)
    with site_engine(world, config) as (engine, sync, topology):
        finished = time.monotonic()
        try:
            for step in range(1, 100_000):
                batches = rank_batches(config, topology, 0, step - 1, site=world.site, sites=world.sites)
                loss = sync.reduce(step, engine.forward_backward(batches))
                engine.gradient_norm(loss.tokens)
                engine.step(config.optim.learning_rate)
                sync.after_step(step, last=False)
                finished = time.monotonic()
                if step == 5:
                    tell("trains")
        except LaneError as error:
            return error.site, str(error), time.monotonic() - finished
    raise AssertionError("nothing ended it")


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("fault", ["killed", "stalled", "cut"])
def test_the_others_end_and_say_which_site_it_was(sync: str, fault: str) -> None:
    with sites_over_links(train_until_lost, [*SYNCS[sync], "lane.streams=2"], sites=3, rtt_ms=2) as running:
        assert [running.hear(site) for site in range(3)] == ["trains"] * 3
        _break(running, fault)
        for site in (0, 1):
            blamed, line, seconds = running.hear(site, timeout=60)
            assert seconds < 3 * DEADLINE + 5
            assert f"lane 0 to site {blamed}" in line
            # The first to notice leaves at once, and says to the others for whose sake.
            assert blamed == "site2", line
            if fault == "killed":
                assert "closed" in line or "broke" in line
    assert running.processes[0].exitcode is not None


def _break(running: Sites, fault: str) -> None:
    if fault == "killed":
        running.kill(2)
    elif fault == "stalled":
        running.freeze(2)
    else:
        for site in (0, 1):
            running.network.cut(site, 2)
            running.network.cut(2, site)
