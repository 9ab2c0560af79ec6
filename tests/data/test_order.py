"""The order of samples: a pure function that visits everything once per epoch and keeps its quotas."""

import time
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from isthmus.data import order as order_module
from isthmus.data.order import Order, permute

_SIZES = [*range(1, 71), 1_000, 1_023, 1_024, 1_025]


def test_permutation_is_a_bijection() -> None:
    for size in _SIZES:
        assert sorted(permute(index, size, "key") for index in range(size)) == list(range(size)), size


def test_permutation_differs_between_keys_and_from_the_identity() -> None:
    size = 1_000
    first, second = ([permute(index, size, key) for index in range(size)] for key in ("a", "b"))
    # A random pair of permutations agrees in 1 place on average (Poisson): 12 or more has probability 1e-9.
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 12
    assert sum(index == image for index, image in enumerate(first)) < 12
    assert [permute(index, size, "a") for index in range(size)] == first


def test_permutation_leaves_no_neighbours_together() -> None:
    size = 1_025
    images = [permute(index, size, "key") for index in range(size)]
    # Among n - 1 neighbours of a random permutation 2 (n - 1) / n = 2 differ by one.
    assert sum(abs(a - b) == 1 for a, b in pairwise(images)) < 15


def test_every_epoch_visits_each_window_once_in_an_order_of_its_own() -> None:
    order = Order({"a": 37, "b": 11}, {"a": 3, "b": 1}, seed=5)
    visits: dict[tuple[str, int], list[int]] = {}
    for sample in range(48 * order.block):
        position = order[sample]
        visits.setdefault((position.source, position.epoch), []).append(position.window)
    complete = {key: windows for key, windows in visits.items() if len(windows) == order.windows[key[0]]}
    assert len(complete) == 3 + 4  # 144 samples of 37 windows, 48 of 11
    for (source, _), windows in complete.items():
        assert sorted(windows) == list(range(order.windows[source]))
    for source in ("a", "b"):
        orders = [windows for (name, _), windows in complete.items() if name == source]
        assert len({tuple(windows) for windows in orders}) == len(orders)


def test_seed_changes_the_order_and_nothing_else() -> None:
    one, other = (Order({"a": 100, "b": 10}, {"a": 1, "b": 1}, seed=seed) for seed in (0, 1))
    positions = [(one[sample], other[sample]) for sample in range(100)]
    assert all((a.source, a.epoch) == (b.source, b.epoch) for a, b in positions)
    assert any(a.window != b.window for a, b in positions)


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [
        ({"a": 0.7, "b": 0.1, "c": 0.2}, {"a": 7, "b": 1, "c": 2}),  # configs/data/embedded.yaml
        ({"a": 2, "b": 1}, {"a": 2, "b": 1}),
        ({"a": 1 / 3, "b": 2 / 3}, {"a": 1, "b": 2}),
        ({"a": 5}, {"a": 1}),
        ({"a": 0.999, "b": 0.001}, {"a": 999, "b": 1}),
    ],
)
def test_weights_are_rationals_and_every_block_keeps_them(weights: dict[str, float], quotas: dict[str, int]) -> None:
    order = Order(dict.fromkeys(weights, 50), weights, seed=0)
    assert order.quotas == quotas
    assert order.block == sum(quotas.values())
    for block in (0, 1, 17):
        samples = range(block * order.block, (block + 1) * order.block)
        assert Counter(order[sample].source for sample in samples) == quotas


def test_sources_take_turns_evenly() -> None:
    order = Order({"a": 9, "b": 9}, {"a": 20, "b": 3}, seed=0)
    given = 0
    for sample in range(100):
        given += order[sample].source == "b"
        assert abs(given - (sample + 1) * 3 / 23) <= 1, f"{given} of the first {sample + 1}"


def test_counts_and_epochs_equal_brute_force() -> None:
    order = Order({"a": 7, "b": 3, "c": 5}, {"a": 4, "b": 1, "c": 2}, seed=0)
    for start, stop in ((0, 0), (0, 1), (0, 7), (3, 25), (6, 8), (13, 100), (40, 40)):
        brute = Counter(order[sample].source for sample in range(start, stop))
        assert order.counts(start, stop) == {name: brute[name] for name in "abc"}
    assert order.epochs(70) == {"a": 40 / 7, "b": 10 / 3, "c": 20 / 5}
    assert order[0].epoch == 0


def test_huge_sources_cost_nothing() -> None:
    windows = 10**13  # a web corpus of 4e16 tokens
    started = time.perf_counter()
    order = Order({"a": windows, "b": 3}, {"a": 0.5, "b": 0.5}, seed=0)
    found = [order[2 * windows - 2_000 + sample] for sample in range(2_000)]
    positions = [position for position in found if position.source == "a"]
    assert time.perf_counter() - started < 2.0
    assert {position.epoch for position in positions} == {0}
    assert len({position.window for position in positions}) == 1_000
    assert all(0 <= position.window < windows for position in positions)
    assert (
        max(position.window for position in positions) > windows // 2 > min(position.window for position in positions)
    )
    assert order[2 * windows].epoch == 1


def test_tiny_weight_stays_tiny() -> None:
    order = Order({"a": 50, "b": 50}, {"a": 1.0, "b": 0.0004}, seed=0)
    assert order.quotas["b"] / order.block <= 0.002  # asked for 0.0004, with a resolution of 0.001


def test_table_of_turns_is_small_for_any_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def bounded(*bounds: int) -> Any:
        assert max(bounds) <= 10**6, f"a table of {max(bounds):,} rows"
        return range(*bounds)

    monkeypatch.setattr(order_module, "range", bounded, raising=False)
    order = Order({"a": 50, "b": 50, "c": 50}, {"a": 1.0, "b": 0.37, "c": 0.053}, seed=0)
    assert order.quotas["c"] / order.block == pytest.approx(0.053 / 1.423, abs=0.001)
