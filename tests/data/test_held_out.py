"""Held-out documents: whole, from all over a source, and never trained on."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.datasets import write_dataset

from isthmus.data.reading import Reader
from isthmus.data.shard_source import ShardSource, open_shards
from isthmus.errors import UserError


def source_of(folder: Path, shards: list[list[int]]) -> ShardSource:
    write_dataset(folder / "set", shards)
    return open_shards(str(folder / "set"), None, Reader(8, folder / "cache", 2**30), "here")


def places(source: ShardSource, stream: object) -> list[tuple[int, int]]:
    """Return a stream's extents as tokens of the whole source."""
    before = np.cumsum([0, *(part.tokens for part in source.parts)])
    at = {id(part): int(first) for part, first in zip(source.parts, before, strict=False)}
    return [(at[id(e.part)] + e.first, at[id(e.part)] + e.last) for e in stream.extents]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=20), min_size=1, max_size=5), st.floats(0.001, 0.499))
def test_the_two_are_whole_documents_and_together_everything(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], fraction: float
) -> None:
    if not sum(map(sum, shards)):
        return
    source = source_of(tmp_path_factory.mktemp("held"), shards)
    wanted = int(fraction * source.tokens)
    train, held_out = source.split(wanted)
    assert bool(len(held_out)) == bool(wanted)
    ranges = sorted(places(source, train) + places(source, held_out))
    assert [0, *(stop for _, stop in ranges)] == [*(start for start, _ in ranges), source.tokens]
    documents = [length for shard in shards for length in shard if length]
    bounds = set(np.cumsum([0, *documents]).tolist())
    assert len(held_out) <= 2 * wanted
    if max(documents) < 2 * wanted:
        assert {start for start, _ in places(source, held_out)} <= bounds
        assert {stop for _, stop in places(source, held_out)} <= bounds


def test_documents_come_from_everywhere_and_are_as_many_as_asked(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shards = [draw.integers(20, 200, 400).tolist() for _ in range(10)]
    source = source_of(tmp_path, shards)
    train, held_out = source.split(source.tokens // 20)
    assert len(held_out) == pytest.approx(source.tokens / 20, rel=0.02)
    assert len(train) + len(held_out) == source.tokens
    starts = [start for start, _ in places(source, held_out)]
    assert len(starts) >= 32  # one more where a run goes on in the next shard
    assert max(after - before for before, after in pairwise([0, *starts, source.tokens])) < source.tokens / 16
    assert len({extent.part.name for extent in held_out.extents}) == 10


def test_a_source_of_one_document_is_cut_inside_it(tmp_path: Path) -> None:
    source = source_of(tmp_path, [[100], [0]])
    train, held_out = source.split(7)
    assert places(source, held_out) == [(93, 100)]
    assert len(train) == 93
    rows = np.empty((1, 40), dtype=train.dtype)
    train.read([80], rows)
    assert rows[0].tolist() == [*range(80, 93), *range(27)]
    assert [(span.start, span.stop) for span in train.documents(80, 5)] == [(0, 93)]


def test_no_more_is_held_out_where_documents_are_few_and_long(tmp_path: Path) -> None:
    source = source_of(tmp_path, [[100, 60], [80]])
    _, held_out = source.split(7)
    assert places(source, held_out) == [(153, 160)]  # the end of the shortest
    _, held_out = source.split(30)
    assert places(source, held_out) == [(100, 160)]  # which is near enough to what is wanted to be left whole


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path, [[10] * 20])
    path = tmp_path / "set/part-000.idx"
    content = bytearray(path.read_bytes())
    content[34 + 4 * 20 : 34 + 12 * 20] = b"\x7f" * (8 * 20)  # the offsets
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"part-000.idx is damaged: it has document \d+ at byte"):
        source.split(10)
    path.write_bytes(bytes(content[:40]))
    with pytest.raises(UserError, match="ends 8 bytes before the end"):
        source.split(10)
