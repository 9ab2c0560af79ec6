"""Best-fit packing: every token once, no window over-full, as few windows as the textbook's rule gives."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.shards.best_fit import best_fit, cut

lengths = st.lists(st.integers(0, 60), min_size=1, max_size=80)


@settings(deadline=None, max_examples=100)
@given(lengths, st.integers(2, 25))
def test_documents_are_cut_only_where_they_must_be(documents: list[int], capacity: int) -> None:
    starts = np.cumsum([0, *documents])
    first, tokens = cut(starts, capacity)
    covered = np.concatenate([np.arange(a, a + n) for a, n in zip(first, tokens, strict=True)] or [np.arange(0)])
    assert (covered == np.arange(starts[-1])).all()  # every token once, in order
    assert len(first) == sum(-(-length // capacity) for length in documents)  # no more pieces than that
    whole = {(int(a), int(n)) for a, n in zip(first, tokens, strict=True)}
    for start, length in zip(starts, documents, strict=False):
        assert not 0 < length <= capacity or (start, length) in whole


def one_by_one(tokens: list[int], capacity: int) -> list[int]:
    """Return the space left in each window after best-fit decreasing, a piece at a time."""
    spaces: list[int] = []
    for length in sorted(tokens, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else capacity) - length)
    return sorted(spaces)


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 40), st.data())
def test_windows_are_those_of_best_fit_decreasing(capacity: int, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(1, capacity), max_size=120))
    windows = best_fit(np.array(tokens, dtype=np.int64), capacity)
    filled = np.bincount(windows, weights=tokens).astype(int) if tokens else np.zeros(0, dtype=int)
    assert (filled > 0).all()
    assert (filled <= capacity).all()
    assert sorted((capacity - filled).tolist()) == one_by_one(tokens, capacity)


def test_a_realistic_mix_of_lengths_leaves_almost_nothing_empty() -> None:
    draw = np.random.default_rng(0)
    # Web pages: log-normal with a median of 500 tokens and a heavy tail.
    documents = np.maximum(1, draw.lognormal(6.2, 1.2, 20_000)).astype(np.int64)
    _, tokens = cut(np.concatenate([[0], np.cumsum(documents)]), 2_049)
    windows = best_fit(tokens, 2_049)
    assert tokens.sum() / ((windows.max() + 1) * 2_049) > 0.999
