"""Fits against the published minimum, and on points whose law is known."""

from pathlib import Path

import numpy as np
import pytest
from support.planner import DATA, needs_data

from isthmus.errors import UserError
from isthmus.train.planner.fit import Points, bootstrap, fit, read_points, without_highest
from isthmus.train.planner.laws import BESIROGLU
from isthmus.train.planner.uncertainty import interval, opinions


@needs_data
def test_the_240_chinchilla_points_give_the_huber_minimum() -> None:
    points = without_highest(read_points(DATA / "chinchilla_points.csv"), 5)
    assert len(points) == 240
    best = fit(points)
    # Besiroglu et al., arXiv 2404.10102: the minimum on the points, before their rounding
    assert best.constants == pytest.approx((1.81724, 477.84, 2143.86, 0.34731, 0.36718), rel=0.01)
    assert best.objective == pytest.approx(0.0010183, abs=5e-8)
    refits = bootstrap(points, best, 200)
    exponents = np.array([sample.exponent for sample in refits])
    # Epoch's bootstrap: a = .513 with a standard error of .020
    assert exponents.std() == pytest.approx(0.020, abs=0.003)
    low, high = np.percentile(exponents, [16, 84])
    assert 0.513 - 0.025 <= low < 0.513 < high <= 0.513 + 0.025


def _points(noise: float, seed: int = 0) -> Points:
    chance = np.random.default_rng(seed)
    params = np.exp(chance.uniform(np.log(1e7), np.log(1e10), 60))
    tokens = params * np.exp(chance.uniform(np.log(3), np.log(300), 60))
    loss = np.array([BESIROGLU.loss(n, d) for n, d in zip(params, tokens, strict=True)])
    return Points(params, tokens, loss * np.exp(noise * chance.standard_normal(60)))


# A few starts are enough for points that a law has made.
_STARTS = [(0.5, 6.0, 7.0, 0.4, 0.4), (0.0, 10.0, 10.0, 0.5, 0.5), (0.5, 4.0, 6.0, 0.2, 0.3)]


def test_a_known_law_is_found_again() -> None:
    best = fit(_points(0.0001), _STARTS)
    assert best.constants == pytest.approx((1.8172, 482.01, 2085.43, 0.3478, 0.3658), rel=0.02)


def test_a_bootstrap_holds_the_truth_and_shrinks_with_the_noise() -> None:
    spread = {}
    for noise in (0.001, 0.01):
        points = _points(noise)
        refits = bootstrap(points, fit(points, _STARTS), 30)
        low, high = interval([sample.exponent for sample in refits]) or (0, 0)
        assert low < BESIROGLU.exponent < high
        spread[noise] = high - low
    assert spread[0.001] < 0.3 * spread[0.01]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "holds no runs"),
        ("a,b\n1,2\n", "needed are params, loss"),
        ("params,tokens,loss\n1e8,1e9,3\n1e8,x,3\n", ":3: tokens is 'x'"),
        ("params,tokens,loss\n1e8,1e9,-3\n", "loss is '-3'"),
        ("params,tokens,loss\n" + "1e8,1e9,3\n" * 9, "1 different values"),
        ("params,flops,loss\n1e8,1e19,3\n2e8,1e20,2.9\n3e8,1e21,2.7\n", "3 runs for 5 constants"),
    ],
)
def test_bad_files_get_one_line(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=part):
        read_points(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_points(tmp_path / "absent.csv")


def test_opinions_show_every_law_with_intervals_and_how_far_it_is_stretched() -> None:
    found = {entry.law: entry for entry in opinions(5.76e23)}
    assert {"besiroglu", "hoffmann-1", "hoffmann-2", "hoffmann-3", "deepseek", "muennighoff"} <= set(found)
    ours = found["besiroglu"]
    assert ours.params_interval is not None
    assert ours.params_interval[0] < ours.params < ours.params_interval[1]
    assert ours.extrapolation == pytest.approx(5.76e23 / 1.3e22)
    assert found["hoffmann-1"].loss is None
