"""What must never go unnoticed: bits that differ between sites or copies, and numbers that are none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.engines import compose_nano, rank_batches
from support.ranks import RankWorld, run_ranks, run_sites
from support.sites import TIMEOUT, site_engine, site_overrides

from isthmus.errors import UserError
from isthmus.parallelism.copies import checksum
from isthmus.parallelism.engine import Engine
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.slices import Slice
from isthmus.parallelism.topology import build_topology
from isthmus.train.assembly import build_engine
from isthmus.train.parts import SiteSync

EXACT = ["sync=exact", "sync.verify_every=3"]
LOCAL = ["sync=local", "sync.every=2", "sync.fragments=1", "sync.overlap_steps=1", "sync.verify_every=2"]


def train(
    world: RankWorld, overrides: list[str], steps: int, disturb: Callable[[RankWorld, int, Engine, SiteSync], None]
) -> tuple[list[float], str]:
    """Rank function: train, disturbed before each step's exchange; return gradient norms and the error at the end."""
    config = compose_nano(*site_overrides(world), "train.micro_batch=1", *overrides)
    norms: list[float] = []
    try:
        with site_engine(world, config) as (engine, sync, topology):
            for step in range(1, steps + 1):
                batches = rank_batches(config, topology, world.rank, step - 1, site=world.site, sites=world.sites)
                loss = engine.forward_backward(batches)
                disturb(world, step, engine, sync)
                loss = sync.reduce(step, loss)
                norms.append(engine.gradient_norm(loss.tokens))
                conclude = sync.after_step
                if norms[-1] == norms[-1]:
                    engine.step(config.optim.learning_rate)
                else:
                    engine.discard()
                    conclude = sync.discard
                conclude(step, last=step == steps)
    except UserError as error:
        return norms, str(error)
    return norms, ""


def flip_parameter(world: RankWorld, step: int, engine: Engine, sync: SiteSync) -> None:
    if (world.site, world.rank, step) == (1, 0, 2):
        _flip(next(iter(engine.owned())).parameter)


def flip_outer(world: RankWorld, step: int, engine: Engine, sync: Any) -> None:
    if (world.site, step) == (1, 3):
        _flip(sync._present()[0].outer[0])


def flip_norm_copy(world: RankWorld, step: int, engine: Engine, sync: SiteSync) -> None:
    if (world.rank, step) == (1, 2):  # in all sites, so that only the copies inside them differ
        _flip(next(entry.parameter for entry in engine.owned() if "layernorm" in entry.slice.name))


def _flip(values: torch.Tensor) -> None:
    with torch.no_grad():
        values.view(torch.int32)[0] ^= 1


@pytest.mark.parametrize(
    ("overrides", "disturb", "when"),
    [(EXACT, flip_parameter, "after step 3"), (LOCAL, flip_outer, "after round 2")],
)
def test_a_flipped_bit_in_one_site_stops_all(overrides: list[str], disturb: Any, when: str) -> None:
    for (_, error), other in zip(
        [site[0] for site in run_sites(train, 2, 1, overrides, 9, disturb)], ("site1", "site0"), strict=True
    ):
        assert error.startswith("lane 0: the parameters differ between")
        assert other in error
        assert when in error


def test_a_flipped_bit_in_one_copy_stops_its_site() -> None:
    sites = run_sites(train, 2, 2, [*EXACT, "parallel.tensor=2"], 9, flip_norm_copy)
    for site in sites:
        assert any("copies of a parameter inside" in error for _, error in site), site


def _copies(world: RankWorld, overrides: list[str]) -> tuple[bool, bool]:
    """Rank function: whether copies differ before and after a bit of one of them was flipped."""
    config = compose_nano(*overrides)
    topology = build_topology(config.parallel, world.size)
    with site_groups(topology, rank=world.rank, timeout=TIMEOUT, init_method=world.init_method) as groups:
        engine = build_engine(config, groups)
        before = engine.copies_differ()
        if world.rank == world.size - 1:
            names = ("embedding",) if config.model.tied_embeddings else ("layernorm",)
            _flip(next(entry.parameter for entry in engine.owned() if any(name in entry.slice.name for name in names)))
        return before, engine.copies_differ()


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, ["parallel.tensor=2"]),
        (4, ["parallel.tensor=2"]),
        (2, ["parallel.pipeline=2", "model.tied_embeddings=true"]),
        (4, ["parallel.pipeline=2", "model.tied_embeddings=true"]),
    ],
)
def test_copies_are_found_to_differ(ranks: int, overrides: list[str]) -> None:
    assert run_ranks(_copies, ranks, ["train.micro_batch=1", *overrides]) == [(False, True)] * ranks


def test_checksums_of_parts_add_up_and_show_any_bit() -> None:
    values = torch.randn(100)

    def part(start: int, stop: int) -> Slice:
        return Slice("x", (100,), (0,), (100,), start, stop)

    whole = checksum(part(0, 100), values)
    parts = checksum(part(0, 37), values[:37]) + checksum(part(37, 100), values[37:])
    assert (whole - parts) % 2**64 == 0
    for bit in range(32):
        other = values.clone()
        other.view(torch.int32)[41] ^= 1 << bit if bit < 31 else -(1 << 31)
        assert checksum(part(0, 100), other) != whole


def poisoned(world: RankWorld, overrides: list[str], steps: int) -> list[float]:
    """Rank function: train with NaN in one site's gradients at step 3, skip what is no number; return the norms."""
    config = compose_nano(*site_overrides(world), "train.micro_batch=1", *overrides)
    norms: list[float] = []
    with site_engine(world, config) as (engine, sync, topology):
        for step in range(1, steps + 1):
            batches = rank_batches(config, topology, world.rank, step - 1, site=world.site, sites=world.sites)
            if (world.site, step) == (1, 3):
                # Before the backward pass, since buckets leave from within it.
                saved = [entry.parameter.clone() for entry in engine.owned()]
                next(iter(engine.owned())).parameter.fill_(torch.nan)
                engine.publish_parameters()
            loss = sync.reduce(step, engine.forward_backward(batches))
            norms.append(engine.gradient_norm(loss.tokens))
            if (world.site, step) == (1, 3):
                for entry, value in zip(engine.owned(), saved, strict=True):
                    entry.parameter.copy_(value)
                engine.publish_parameters()
            if norms[-1] == norms[-1]:
                engine.step(config.optim.learning_rate)
                sync.after_step(step, last=step == steps)
            else:
                engine.discard()
                sync.discard(step, last=step == steps)
    return norms


@pytest.mark.parametrize("wire", ["fp32", "int8", "topk"])
@pytest.mark.parametrize("count", [2, 3])
def test_a_gradient_that_is_no_number_makes_all_sites_discard_the_step(wire: str, count: int) -> None:
    """They stay equal afterwards (verified after every step), and the errors of compression are those before."""
    overrides = ["sync=exact", f"sync.wire={wire}", "sync.verify_every=1", "train.global_batch=12"]
    sites = run_sites(poisoned, count, 1, overrides, 5)
    for (norms,) in sites:
        assert [norm == norm for norm in norms] == [True, True, False, True, True]


def explode(world: RankWorld, step: int, engine: Engine, sync: Any) -> None:
    if (world.site, world.rank, step) == (1, 1, 3):
        # Of a matrix that is split over the tensor ranks: the lane of the other rank sees nothing of it.
        next(entry.parameter for entry in engine.owned() if "linear_proj" in entry.slice.name)[0] = torch.inf


def test_a_round_that_one_lane_refuses_is_refused_on_all_lanes() -> None:
    """Else the norms, whose copies cross on both lanes, would come apart inside each site."""
    overrides = [*LOCAL, "parallel.tensor=2", "sync.verify_every=1"]
    for site in run_sites(train, 2, 2, overrides, 4, explode):
        for norms, error in site:
            assert error == ""
            assert len(norms) == 4
