"""Exact sync: several sites are one big site, to the last bit among each other."""

import itertools

import numpy as np
import pytest
from support.engines import assemble, train_nano
from support.ranks import run_ranks, run_sites
from support.sites import SiteTrajectory, train_site

STEPS = 20
LAYOUTS = {
    "one rank": (1, []),
    "TP 2": (2, ["parallel.tensor=2"]),
    "PP 2": (2, ["parallel.pipeline=2"]),
    "DP 2": (2, []),
    "TP 2 with sequence, DP 2": (4, ["parallel.tensor=2", "parallel.sequence=true"]),
}


@pytest.fixture(scope="module")
def alone() -> object:
    (trajectory,) = run_ranks(train_nano, 1, STEPS, ["train.micro_batch=1"])
    return trajectory


def assert_same_bits(sites: list[list[SiteTrajectory]]) -> None:
    for first, second in itertools.pairwise(sites):
        for ours, theirs in zip(first, second, strict=True):
            assert ours.losses == theirs.losses
            assert ours.grad_norms == theirs.grad_norms
            for mine, others in zip(ours.parameters, theirs.parameters, strict=True):
                for (where, values), (other_where, other_values) in zip(mine, others, strict=True):
                    assert where == other_where
                    assert values.tobytes() == other_values.tobytes(), where


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_sites_train_like_one(alone, layout: str) -> None:  # type: ignore[no-untyped-def]
    ranks, overrides = LAYOUTS[layout]
    sites = run_sites(
        train_site,
        2,
        ranks,
        STEPS,
        ["sync=exact", "train.micro_batch=1", "sync.verify_every=7", *overrides],
        [1, STEPS],
    )
    assert_same_bits(sites)
    np.testing.assert_allclose(sites[0][0].losses, alone.losses, rtol=1e-4)
    np.testing.assert_allclose(sites[0][0].grad_norms, alone.grad_norms, rtol=1e-3)
    together = assemble([trajectory.parameters[-1] for trajectory in sites[0]])
    reference = assemble([alone.parameters])
    for name, values in reference.items():
        difference = np.linalg.norm(together[name] - values) / np.linalg.norm(values)
        assert difference <= 1e-3, f"{name} differs by {difference:.1e}"


@pytest.mark.parametrize("count", [3, 4])
def test_three_and_four_sites(alone, count: int) -> None:  # type: ignore[no-untyped-def]
    batch = 12 if count == 3 else 8
    sites = run_sites(
        train_site, count, 1, 6, ["sync=exact", "train.micro_batch=1", f"train.global_batch={batch}"], [1, 6]
    )
    assert_same_bits(sites)
    if batch == 8:
        np.testing.assert_allclose(sites[0][0].losses, alone.losses[:6], rtol=1e-4)


@pytest.mark.parametrize("wire", ["bf16", "int8", "int4", "topk"])
@pytest.mark.parametrize("count", [2, 4])
def test_lossy_wires_keep_the_sites_equal(alone, wire: str, count: int) -> None:  # type: ignore[no-untyped-def]
    overrides = ["sync=exact", "train.micro_batch=1", f"sync.wire={wire}", "sync.verify_every=1"]
    if wire == "topk":
        overrides += ["sync.density=0.05", "sync.error_decay=0.95"]
    sites = run_sites(train_site, count, 1, STEPS, overrides, [1, STEPS])
    assert_same_bits(sites)
    # It learns: with error feedback, what is lost in one step comes in another.
    tolerance = {"bf16": 0.01, "int8": 0.01, "int4": 0.05, "topk": 0.25}[wire]
    assert sites[0][0].losses[-1] == pytest.approx(alone.losses[-1], rel=tolerance)


def test_each_number_crosses_once() -> None:
    """W ranks of a site together send each gradient once, not W times: 2 (S - 1) / S of it."""
    parameters = {}
    for ranks in (1, 2):
        for count in (2, 3):
            overrides = ["sync=exact", "train.micro_batch=1", "train.global_batch=12", "sync.verify_every=0"]
            sites = run_sites(train_site, count, ranks, 2, overrides, [2])
            numel = sum(v.size for v in assemble([t.parameters[-1] for t in sites[0]]).values())
            sent = sites[0][0].bytes_sent / 2
            ideal = 2 * (count - 1) / count * 4 * numel
            parameters[ranks, count] = sent / ideal
    # Beyond the gradients: headers of chunks, the loss, the digest at the start.
    assert all(0.999 < ratio < 1.01 for ratio in parameters.values()), parameters
