"""Streams of shards: every window holds the tokens it should, or says why not."""

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from support.datasets import END, VOCABULARY, write_dataset, write_shards

from isthmus.data.config import DataConfig, SourceConfig
from isthmus.data.corpus import build_corpus
from isthmus.data.loader import MixtureLoader, validate_corpus
from isthmus.data.reading import Reader
from isthmus.data.shard_source import is_shard_path, open_shards
from isthmus.data.shards.dataset import Dataset
from isthmus.data.shares import Division
from isthmus.data.streams import Extent, ShardStream
from isthmus.errors import UserError

SHARDS = [[70, 30, 100], [5], [300, 1, 1, 98], [250]]  # 855 tokens


def reader(tmp_path: Path, **more: Any) -> Reader:
    return Reader(more.pop("open_files", 8), tmp_path / "cache", more.pop("cache_bytes", 2**30), **more)


def windows(stream: Any, starts: list[int], width: int = 33) -> tuple[np.ndarray, dict[int, str]]:
    rows = np.full((len(starts), width), 7, dtype=stream.dtype)
    return rows, stream.read(starts, rows).bad


def test_any_window_holds_its_tokens_also_across_shards_and_past_the_end(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", SHARDS)
    stream = open_shards(str(tmp_path / "set"), None, reader(tmp_path), "here").stream
    assert len(stream) == 855
    for width in (1, 33, 700):
        rows, bad = windows(stream, list(range(855)), width)
        assert not bad
        expected = (np.arange(855)[:, None] + np.arange(width)) % 855 % VOCABULARY
        assert (rows == expected).all()
    first, _, third, _ = (extent.part for extent in stream.extents)
    holes = ShardStream(
        [Extent(first, 150, 200), Extent(third, 0, 50), Extent(third, 90, 95)], stream.reader, rows.dtype
    )
    tokens = [*range(150, 200), *range(205, 255), *range(295, 300)]
    rows, _ = windows(holes, list(range(105)), 40)
    assert (rows == np.array([(tokens * 2)[start : start + 40] for start in range(105)])).all()
    assert [(span.start, span.stop) for span in holes.documents(95, 20)] == [(50, 100), (100, 105), (0, 50)]


def test_a_bounded_number_of_files_is_open(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", [[20]] * 40)
    source = reader(tmp_path, open_files=3)
    stream = open_shards(str(tmp_path / "set"), None, source, "here").stream
    before = len(os.listdir("/proc/self/fd"))
    for start in random.Random(0).sample(range(800), 200):
        windows(stream, [start], 5)
        assert source.open_count <= 3
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    copy = pickle.loads(pickle.dumps(stream))  # as a worker gets it
    assert copy.reader.open_count == 0
    assert windows(copy, [5])[0][0, 0] == 5


def test_a_shard_truncated_while_open_is_a_bad_window_and_no_crash(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", SHARDS)
    stream = open_shards(str(tmp_path / "set"), None, reader(tmp_path), "here").stream
    windows(stream, [0])
    os.truncate(tmp_path / "set/part-000.bin", 100)
    rows, bad = windows(stream, [0, 30, 300])
    assert list(bad) == [1]
    assert "part-000.bin ends 26 bytes before the end of a read at 60" in bad[1]
    assert not rows[1].any()
    with pytest.raises(UserError, match=r"part-000.bin: has 100 bytes instead of 400"):
        open_shards(str(tmp_path / "set"), None, reader(tmp_path), "here")


@pytest.mark.parametrize("check", [True, False])
def test_blocks_are_compared_with_their_hashes(tmp_path: Path, check: bool) -> None:
    write_dataset(tmp_path / "set", SHARDS)
    with (tmp_path / "set/part-002.bin").open("r+b") as file:
        file.seek(10)
        file.write(b"\x01")
    stream = open_shards(str(tmp_path / "set"), None, reader(tmp_path, check_blocks=check), "here").stream
    _, bad = windows(stream, [0, 210, 610])
    assert list(bad) == ([1] if check else [])
    assert not check or "block 0 is not what its manifest says" in bad[1]


def test_an_object_store_is_read_in_blocks_that_are_kept(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", SHARDS)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "set"), "/bucket/set", recursive=True)
    local = open_shards(str(tmp_path / "set"), None, reader(tmp_path), "here")
    source = reader(tmp_path)
    remote = open_shards("memory://bucket/set", None, source, "here")
    assert remote.fingerprint == local.fingerprint
    starts = list(range(0, 855, 7))
    rows, bad = windows(remote.stream, starts)
    assert not bad
    assert (rows == windows(local.stream, starts)[0]).all()
    assert source._remote.fetched_bytes == 855 * 2  # each block once
    again = reader(tmp_path)
    windows(open_shards("memory://bucket/set", None, again, "here").stream, starts)
    assert again._remote.fetched_bytes == 0
    small = Reader(8, tmp_path / "small", 700)
    windows(open_shards("memory://bucket/set", None, small, "here").stream, starts)
    assert sum(path.stat().st_size for path in (tmp_path / "small/blocks").iterdir()) <= 800  # the largest block
    store.pipe("/bucket/set/part-003.bin", b"\0" * 500)
    fresh = Reader(8, tmp_path / "fresh", 2**30)
    _, bad = windows(open_shards("memory://bucket/set", None, fresh, "here").stream, [700])
    assert "is not what its manifest says" in bad[0]
    store.rm("/bucket", recursive=True)


def test_one_file_is_read_to_open_a_dataset_and_the_shards_manifests_must_fit_it(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", SHARDS)
    path = tmp_path / "set/made-00002.manifest.json"
    content = json.loads(path.read_text())
    content["files"][0]["blocks"] = ["0" * 64]
    path.write_text(json.dumps(content))
    stream = open_shards(str(tmp_path / "set"), None, reader(tmp_path, check_blocks=True), "here").stream
    _, bad = windows(stream, [0, 210, 610])
    assert list(bad) == [1]
    assert "made-00002.manifest.json is not the one that its dataset was made with" in bad[1]
    assert any("is not what manifest.json says of it" in line for line in Dataset(tmp_path / "set").damaged())
    path.unlink()
    assert "made-00002.manifest.json cannot be read" in windows(stream, [210])[1][0]
    old = tmp_path / "set/manifest.json"
    old.write_text(old.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(UserError, match=r"manifest.json: has format 1, this version reads 2"):
        open_shards(str(tmp_path / "set"), None, reader(tmp_path), "here")


def test_a_megatron_prefix_needs_no_manifest(tmp_path: Path) -> None:
    (prefix,) = write_shards(tmp_path, [[40, 60]], dtype="<i4")
    for path in (prefix, prefix.with_suffix(".bin"), prefix.with_suffix(".idx")):
        assert is_shard_path(str(path))
    source = open_shards(str(prefix), None, reader(tmp_path), "here")
    assert windows(source.stream, [50])[0][0].tolist() == list(range(50, 83))
    before = source.fingerprint
    (tmp_path / "part-000.bin").write_bytes(b"\1" * 400)
    assert open_shards(str(prefix), None, reader(tmp_path), "here").fingerprint != before
    assert not is_shard_path(str(tmp_path))


def corpus_loader(tmp_path: Path, **more: Any) -> MixtureLoader:
    config = DataConfig(
        sources={"made": SourceConfig(path=str(tmp_path / "set"))}, cache_dir=str(tmp_path / "cache"), **more
    )
    corpus = build_corpus(config, VOCABULARY)
    assert (corpus.vocab_size, corpus.end) == (VOCABULARY, END)
    mixture = validate_corpus(corpus, config, sequence_length=16, global_batch=4, steps=30, seed=0, held_out=False)
    return MixtureLoader(
        corpus, mixture, config, sequence_length=16, global_batch=4, micro_batch=2, division=Division()
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_masks_windows_up_to_a_limit(tmp_path: Path, workers: int) -> None:
    write_dataset(tmp_path / "set", SHARDS)
    with (tmp_path / "set/part-002.bin").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff")  # a token beyond the vocabulary
    loader = corpus_loader(tmp_path, workers=workers, max_bad_windows=1)
    batches = [batch for _ in range(12) for batch in loader.next_step()]
    bad = [batch for batch in batches if batch.bad]
    assert len(bad) == 1
    assert "a token of 65535" in bad[0].bad[0]
    assert sum(float(batch.mask_BS.sum()) for batch in batches) == (48 - 1) * 16
    with pytest.raises(UserError, match=r"data\.max_bad_windows: 2 windows could not be read"):
        sum(len(loader.next_step()) for _ in range(30))


def test_tokens_beyond_the_models_vocabulary_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", SHARDS)
    config = DataConfig(sources={"made": SourceConfig(path=str(tmp_path / "set"))}, cache_dir=str(tmp_path))
    with pytest.raises(UserError, match="vocabulary of 1000, and the model's embedding has 999 rows"):
        build_corpus(config, VOCABULARY - 1)
