"""The order of samples: a pure function that visits everything once per epoch and keeps its quotas."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from isthmus.data.order import LARGEST_BLOCK, Order, Position, Segment, Shape, quotas_of
from isthmus.data.permutation import Shuffle, key_of, permute

STRIDE = 16


def shape(windows: int, chunk: int = 10**9, group: int = 64) -> Shape:
    return Shape(windows, windows * STRIDE + 5, STRIDE, chunk, group)


def one(windows: dict[str, int], weights: dict[str, float], seed: int = 0) -> Order:
    return Order({name: shape(count) for name, count in windows.items()}, [Segment(0, quotas_of(weights))], seed)


def images(size: int, key: object, shuffle: Shuffle | None = None) -> np.ndarray:
    index, keys = np.arange(size), np.full(size, key_of(key))
    return shuffle(index, keys) if shuffle else permute(index, np.full(size, size), keys)


def test_permutation_is_a_bijection() -> None:
    for size in [*range(1, 71), 1_000, 1_023, 1_024, 1_025]:
        assert sorted(images(size, "key")) == list(range(size)), size


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 6), st.integers(0, 99))
def test_two_levels_are_a_bijection_that_keeps_groups_of_chunks_together(
    windows: int, chunk: int, group: int, key: int
) -> None:
    found = images(windows, key, Shuffle(windows, chunk, group))
    assert sorted(found) == list(range(windows))
    # Reading goes through the chunks group by group: none is returned to after its group.
    last, first = {}, {}
    for place, window in enumerate(found):
        last[window // chunk] = place
        first.setdefault(window // chunk, place)
    at_once = max(sum(first[c] <= place <= last[c] for c in first) for place in range(windows))
    assert at_once <= group


def test_permutation_differs_between_keys_and_from_the_identity() -> None:
    size = 1_000
    first, second = images(size, "a"), images(size, "b")
    # A random pair of permutations agrees in 1 place on average (Poisson): 12 or more has probability 1e-9.
    assert (first == second).sum() < 12
    assert (first == np.arange(size)).sum() < 12
    assert (images(size, "a") == first).all()


@pytest.mark.parametrize("size", [3, 10, 64, 1_000])
def test_every_place_is_equally_likely(size: int) -> None:
    """Chi-square of where a window comes, over keys: a fair permutation gives each place equally often."""
    keys = 20_000
    derived = np.random.default_rng(0).integers(0, 2**64, keys, dtype=np.uint64)
    for index in {0, 1, size - 1}:
        places = permute(np.full(keys, index), np.full(keys, size), derived)
        counts = np.bincount(places, minlength=size)
        chi_square, degrees = float(((counts - keys / size) ** 2).sum() / (keys / size)), size - 1
        # Wilson and Hilferty (1931): the cube root is nearly normal. 5 standard deviations have probability 3e-7.
        deviate = ((chi_square / degrees) ** (1 / 3) - 1 + 2 / (9 * degrees)) / (2 / (9 * degrees)) ** 0.5
        assert deviate < 5, f"window {index} of {size}: {counts[:10]}"


@pytest.mark.parametrize("shuffle", [Shuffle(50_000, 10**9, 1), Shuffle(50_000, 500, 20)])
def test_neighbours_are_not_correlated(shuffle: Shuffle) -> None:
    """Serial correlation and neighbours: inside a group of chunks the order is as good as a random one."""
    span = min(shuffle.windows, shuffle.chunk_windows * shuffle.group_chunks)
    found = images(shuffle.windows, "x", shuffle)[:span].astype(float)
    for lag in (1, 2, 7):
        correlation = np.corrcoef(found[:-lag], found[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(span), f"lag {lag}: {correlation}"
    # Among n - 1 neighbours of a random permutation 2 (n - 1) / n = 2 differ by one.
    assert sum(abs(a - b) == 1 for a, b in pairwise(found)) < 15


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_every_epoch_visits_each_window_once_whatever_the_phases(data: st.DataObject) -> None:
    windows = {name: data.draw(st.integers(1, 40), name) for name in "abc"}
    starts = sorted(data.draw(st.sets(st.integers(1, 300), max_size=3), "starts"))
    segments = []
    for start in [0, *starts]:
        quotas = {name: data.draw(st.integers(0, 9)) for name in "abc"}
        quotas = {name: quota for name, quota in quotas.items() if quota} or {"a": 1}
        segments.append(Segment(start, quotas))
    shapes = {name: shape(count, chunk=data.draw(st.integers(1, 12)), group=2) for name, count in windows.items()}
    order = Order(shapes, segments, seed=data.draw(st.integers(0, 5)))
    found = order.positions(np.arange(400))
    positions = [
        Position(
            "", order.names[found.source[at]], *(int(row[at]) for row in (found.epoch, found.window, found.offset))
        )
        for at in range(400)
    ]
    assert positions[237] == order[237]
    seen = Counter((position.source, position.epoch, position.window) for position in positions)
    assert max(seen.values()) == 1
    for name in "abc":
        served = [position for position in positions if position.source == name]
        full, rest = divmod(len(served), windows[name])
        per_epoch = Counter(position.epoch for position in served)
        assert [per_epoch[epoch] for epoch in range(full)] == [windows[name]] * full
        assert per_epoch[full] == rest
    cut = data.draw(st.integers(0, 400))
    brute = Counter(position.source for position in positions[:cut])
    assert order.counts(0, cut) == {name: brute[name] for name in "abc"}
    for segment, following in pairwise([*segments, Segment(400, {})]):
        for start in range(segment.start, following.start - segment.block + 1, segment.block):
            block = Counter(positions[sample].source for sample in range(start, start + segment.block))
            assert block == segment.quotas


def test_offsets_follow_from_the_epochs_shift_and_cover_what_an_epoch_covers() -> None:
    order = one({"a": 37}, {"a": 1})
    length = order.sources["a"].tokens
    for epoch in range(4):
        found = [order[sample] for sample in range(37 * epoch, 37 * (epoch + 1))]
        tokens = Counter((position.offset + token) % length for position in found for token in range(STRIDE))
        assert max(tokens.values()) == 1
        assert len(tokens) == 37 * STRIDE
        assert {(position.offset - position.window * STRIDE) % length for position in found} == {
            order.shift("a", epoch)
        }
    assert order.shift("a", 0) == 0
    assert len({order.shift("a", epoch) for epoch in range(12)}) > 4


def test_epochs_have_orders_of_their_own_and_the_first_quarter_is_the_first_epoch() -> None:
    windows = 1_000
    order = one({"a": windows}, {"a": 1})
    found = order.positions(np.arange(4 * windows))
    by_epoch = found.window.reshape(4, windows)
    assert all((first == second).sum() < 12 for first, second in pairwise(by_epoch))
    # Shuffling 4 epochs together would leave 1 - (3/4)^4 = 68% of the windows in the first quarter.
    assert len(set(by_epoch[0])) == windows


def test_seed_changes_the_order_and_nothing_else() -> None:
    first, other = (one({"a": 100, "b": 10}, {"a": 1, "b": 1}, seed=seed) for seed in (0, 1))
    positions = [(first[sample], other[sample]) for sample in range(100)]
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
        ({"a": 1.0, "b": 0.37, "c": 0.053}, {"a": 1000, "b": 370, "c": 53}),
    ],
)
def test_weights_become_exact_rationals(weights: dict[str, float], quotas: dict[str, int]) -> None:
    assert quotas_of(weights) == quotas


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(1e-4, 1e4), min_size=1))
@example({"a": 9216.0, "b": 0.125, "c": 0.015625})
def test_any_weights_are_met_to_the_resolution_of_a_bounded_block(weights: dict[str, float]) -> None:
    quotas = quotas_of(weights)
    block, total = sum(quotas.values()), sum(weights.values())
    assert block <= LARGEST_BLOCK
    for name, weight in weights.items():
        # Sources that asked for less than one place take it from the others, at most one each.
        assert abs(quotas[name] / block - weight / total) <= (len(weights) + 1) / LARGEST_BLOCK
        assert quotas[name] >= 1


def test_sources_take_turns_evenly() -> None:
    order = one({"a": 9, "b": 9}, {"a": 20, "b": 3})
    given = 0
    for sample in range(100):
        given += order[sample].source == "b"
        assert abs(given - (sample + 1) * 3 / 23) <= 1, f"{given} of the first {sample + 1}"


def test_ten_trillion_tokens_are_exact() -> None:
    length = 4_096
    windows = 10**13 // length
    big = Shape(windows, windows * length + 1, length, 16_384, 64)
    order = Order({"a": big, "b": shape(7)}, [Segment(0, {"a": 3, "b": 1}), Segment(10**9 + 1, {"a": 1})], seed=3)
    end = 10**9 + 1 + windows
    samples = np.arange(end - 50_000, end)
    found = order.positions(samples)
    served = order.counts(0, end)["a"]
    assert served == (10**9 // 4) * 3 + 1 + windows  # whole blocks, one sample of the next, then all
    nth = served - 50_000 + np.arange(50_000)
    assert (found.epoch == nth // windows).all()
    assert (found.epoch == 1).all()
    assert len(np.unique(found.window)) == 50_000
    assert found.window.min() >= 0
    assert found.window.max() < windows
    assert found.offset.max() < big.tokens
    shift = order.shift("a", 1)
    assert all(
        int(offset) == (shift + int(window) * length) % big.tokens  # Python's integers do not overflow
        for offset, window in zip(found.offset[:100], found.window[:100], strict=True)
    )
