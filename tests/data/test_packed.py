"""Packed windows in training: whole documents once an epoch, padding without a loss, nothing of what is held out."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.datasets import END, VOCABULARY, write_dataset, write_shards

from isthmus.data.config import DataConfig, Packing, SourceConfig
from isthmus.data.corpus import build_corpus
from isthmus.data.loader import MixtureLoader, validate_corpus
from isthmus.data.reading import Reader
from isthmus.data.run_tokenizer import tokenizer_of_run
from isthmus.data.shard_source import ShardSource, open_shards
from isthmus.data.shards import packing
from isthmus.data.shards.dataset import Dataset
from isthmus.data.shards.packing import fills, pack_dataset
from isthmus.data.shares import Division
from isthmus.data.tokenizer import train
from isthmus.errors import UserError

LENGTH, SIZE = 16, 17  # of a sample, and of a window with its last label
SHARDS = [[70, 3, 9, 0, 5, 17], [5], [1, 40, 16, 2, 2], [34, 8]]  # 212 tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set", SHARDS)
    pack_dataset(tmp_path / "set", LENGTH)
    return tmp_path / "set"


def opened(folder: Path, **more: Any) -> ShardSource:
    return open_shards(str(folder), None, Reader(8, folder / "cache", 2**30, **more), "here", packed_for=LENGTH)


def loader(folder: Path, *, steps: int = 30, **more: Any) -> MixtureLoader:
    config = DataConfig(
        sources={"made": SourceConfig(path=str(folder))},
        cache_dir=str(folder / "cache"),
        **{
            "packing": Packing.best_fit,
            "held_out": 0.0,
            "shuffle_chunk_bytes": 4 * LENGTH * 2,
            "shuffle_group_chunks": 2,
        }
        | more,
    )
    corpus = build_corpus(config, VOCABULARY, LENGTH)
    mixture = validate_corpus(
        corpus, config, sequence_length=LENGTH, global_batch=1, steps=steps, seed=0, held_out=False
    )
    return MixtureLoader(
        corpus, mixture, config, sequence_length=LENGTH, global_batch=1, micro_batch=1, division=Division()
    )


def pieces(folder: Path) -> list[list[tuple[int, int, int]]]:
    """Return the table: for each window the shard, first token and tokens of its pieces."""
    stream, _ = opened(folder).split(0, LENGTH)
    ends = np.cumsum([table.windows for table in stream.tables])
    return [
        [(int(np.searchsorted(ends, window, side="right")), *piece) for piece in stream._pieces(window)[1]]
        for window in range(stream.windows(LENGTH))
    ]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=12), min_size=1, max_size=4), st.data())
def test_every_document_is_in_an_epoch_once_and_no_window_is_over_full(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], data: st.DataObject
) -> None:
    total = sum(map(sum, shards))
    if total < 2:
        return
    folder = write_dataset(tmp_path_factory.mktemp("packed") / "set", shards)
    with pytest.MonkeyPatch.context() as patch:  # several regions, also in shards as small as these
        patch.setattr(packing, "_REGION_TOKENS", data.draw(st.integers(20, 200), "region"))
        patch.setattr(packing, "_REGION_WINDOWS", 1)
        pack_dataset(folder, LENGTH)
    windows = pieces(folder)
    assert all(0 < sum(tokens for *_, tokens in window) <= SIZE for window in windows)
    covered = Counter((shard, t) for window in windows for shard, first, n in window for t in range(first, first + n))
    full = [tokens for tokens in map(sum, shards) if tokens]
    assert covered == Counter((shard, token) for shard, tokens in enumerate(full) for token in range(tokens))
    # The order serves each window once an epoch, in another order in the next.
    served = loader(folder, steps=2 * len(windows)).order.positions(np.arange(2 * len(windows))).window
    assert sorted(served[: len(windows)]) == sorted(served[len(windows) :]) == list(range(len(windows)))
    assert len(windows) < 12 or served[: len(windows)].tolist() != served[len(windows) :].tolist()
    (fill,) = fills(Dataset(folder).shards).values()
    assert fill == pytest.approx(total / (SIZE * len(windows)))


def test_samples_hold_their_documents_and_padding_has_no_loss(folder: Path) -> None:
    windows = pieces(folder)
    source = loader(folder, steps=len(windows), mask_documents=True, reset_positions=True)
    befores = np.cumsum([0, *map(sum, SHARDS)])
    for sample in range(len(windows)):
        (batch,) = source.next_step()
        window = windows[source.order[sample].window]
        tokens = [befores[shard] + first + at for shard, first, n in window for at in range(n)]
        padded = np.array([*tokens, *[0] * (SIZE - len(tokens))]) % VOCABULARY
        assert batch.tokens_BS[0].tolist() == padded[:-1].tolist()
        assert batch.labels_BS[0].tolist() == padded[1:].tolist()
        number = [document for document, (*_, n) in enumerate(window) for _ in range(n)]
        number += [len(window)] * (SIZE - len(tokens))
        assert batch.documents_BS is not None
        assert batch.documents_BS[0].tolist() == number[:-1]
        # A loss on every token that another one of its document comes before.
        expected = [float(a == b and b < len(window)) for a, b in pairwise(number)]
        assert batch.mask_BS[0].tolist() == expected


def test_without_masks_only_padding_and_what_follows_a_cut_have_no_loss(tmp_path: Path) -> None:
    write_shards(tmp_path / "made", [[20, 5, 5]])
    tokens = np.arange(1, 31, dtype="<u2")
    tokens[[19, 24, 29]] = END
    (tmp_path / "made/part-000.bin").write_bytes(tokens.tobytes())
    from isthmus.data.shards.imports import import_shards

    tokenizer = {"name": "none", "sha256": "0", "size": VOCABULARY, "end": END}
    import_shards([tmp_path / "made/part-000"], tmp_path / "set", source="made", tokenizer=tokenizer)
    pack_dataset(tmp_path / "set", LENGTH)
    assert pieces(tmp_path / "set") == [[(0, 0, 17)], [(0, 17, 3), (0, 20, 5), (0, 25, 5)]]
    (batch,) = next(
        batches for batches in iter(loader(tmp_path / "set").next_step, None) if batches[0].tokens_BS[0, 0] == 18
    )
    # 3 + 5 + 5 tokens, each document ended by END: 12 predictions, the first token of the next document among them.
    assert batch.mask_BS[0].tolist() == [1.0] * 12 + [0.0] * 4
    (tmp_path / "made/part-000.bin").write_bytes(np.arange(1, 31, dtype="<u2").tobytes())
    (batch,) = next(
        batches for batches in iter(loader(tmp_path / "set").next_step, None) if batches[0].tokens_BS[0, 0] == 18
    )
    assert batch.mask_BS[0].tolist() == [1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]


def test_what_is_held_out_is_in_no_window(tmp_path: Path) -> None:
    draw = random.Random(0)
    write_dataset(tmp_path / "set", [[draw.randint(2, 40) for _ in range(30)] for _ in range(4)])
    pack_dataset(tmp_path / "set", LENGTH)
    source = opened(tmp_path / "set")
    train, held_out = source.split(source.tokens // 10, LENGTH)
    assert 0.05 < len(held_out) / source.tokens < 0.15
    assert len(train) + len(held_out) == source.tokens
    before = np.cumsum([0, *(part.tokens for part in source.parts)])
    places = {id(part): int(first) for part, first in zip(source.parts, before, strict=False)}
    kept = {
        places[id(extent.part)] + token for extent in held_out.extents for token in range(extent.first, extent.last)
    }
    rows = np.empty((train.windows(LENGTH), SIZE), dtype=train.dtype)
    filled = train.read(list(range(len(rows))), rows)
    assert not filled.bad
    assert filled.ends is not None
    real = [row[: ends[-1] if ends else 0] for row, ends in zip(rows, filled.ends, strict=True)]
    # Token i of the dataset is i modulo the vocabulary.
    served = Counter(int(token) for row in real for token in row)
    assert served == Counter(token % VOCABULARY for token in range(source.tokens) if token not in kept)
    assert all((row[len(full) :] == 0).all() for row, full in zip(rows, real, strict=True))
    plain, same = open_shards(str(tmp_path / "set"), None, source.reader, "here").split(source.tokens // 10)
    runs = [[(e.part.name, e.first, e.last) for e in stream.extents] for stream in (same, held_out)]
    assert runs[0] == runs[1]
    assert len(plain) == len(train)


def test_resuming_with_workers_continues_and_skips_move_nothing(folder: Path) -> None:
    def rows(source: MixtureLoader, steps: int) -> list[tuple[list[int], list[float]]]:
        return [(b.tokens_BS[0].tolist(), b.mask_BS[0].tolist()) for _ in range(steps) for b in source.next_step()]

    expected = rows(loader(folder), 20)
    before = loader(folder)
    rows(before, 7)
    after = loader(folder, workers=2)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert rows(after, 13) == expected[7:]
    skipping = rows(loader(folder, skip=[[3, 5]]), 20)
    assert [tokens for tokens, _ in skipping] == [tokens for tokens, _ in expected]
    assert all(mask == ([0.0] * LENGTH if at in (3, 4) else expected[at][1]) for at, (_, mask) in enumerate(skipping))
    state = before.state_dict()
    stream = loader(folder, packing=Packing.stream)
    with pytest.raises(UserError, match=r"data\.packing: was best_fit when this run began"):
        stream.load_state_dict(state)


def test_the_documents_of_a_window_are_known(folder: Path) -> None:
    stream, _ = opened(folder).split(0, LENGTH)
    windows = pieces(folder)
    names = [table.part.name for table in stream.tables]
    for window, expected in enumerate(windows):
        found = stream.documents(window, LENGTH)
        assert [(span.about["shard"], span.start, span.stop) for span in found] == [
            (names[shard], first, first + tokens) for shard, first, tokens in expected
        ]
    whole = {
        (span.about["shard"], span.about["document"])
        for w in range(len(windows))
        for span in stream.documents(w, LENGTH)
    }
    assert whole == {
        (name, n) for name, shard in zip(names, SHARDS, strict=True) for n, size in enumerate(shard) if size
    }


def test_a_table_belongs_to_the_fingerprint_and_to_what_is_verified(folder: Path) -> None:
    before = opened(folder).fingerprint
    stream = open_shards(str(folder), None, opened(folder).reader, "here")
    assert stream.fingerprint != before
    pack_dataset(folder, 32)  # another table changes neither
    assert opened(folder).fingerprint == before
    assert open_shards(str(folder), None, opened(folder).reader, "here").fingerprint == stream.fingerprint
    assert not list(Dataset(folder).damaged())
    path = folder / f"made-00002.{LENGTH}.pack"
    content = bytearray(path.read_bytes())
    content[-12:-4] = (10**6).to_bytes(8, "little")  # the first token of the last piece
    path.write_bytes(bytes(content))
    assert [line for line in Dataset(folder).damaged() if path.name in line and "is damaged" in line]
    train, _ = opened(folder).split(0, LENGTH)
    rows = np.empty((train.windows(LENGTH), SIZE), dtype=train.dtype)
    bad = train.read(list(range(len(rows))), rows).bad
    assert len(bad) == 1
    assert "is damaged" in next(iter(bad.values()))
    checking, _ = opened(folder, check_blocks=True).split(0, LENGTH)
    bad = checking.read(list(range(len(rows))), rows).bad
    assert "block 0 is not what its manifest says" in next(iter(bad.values()))
    path.write_bytes(bytes(content[:-3]))
    with pytest.raises(UserError, match=r"made-00002.16.pack: has \d+ bytes instead of"):
        opened(folder)


def test_an_object_store_gives_the_same_windows(folder: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/packed/set", recursive=True)
    reader = Reader(8, tmp_path / "remote", 2**30)
    remote = open_shards("memory://packed/set", None, reader, "here", packed_for=LENGTH)
    assert remote.fingerprint == opened(folder).fingerprint
    contents = []
    for source in (remote, opened(folder)):
        train, held_out = source.split(20, LENGTH)
        rows = np.empty((train.windows(LENGTH), SIZE), dtype=train.dtype)
        filled = train.read(list(range(len(rows))), rows)
        assert not filled.bad
        contents.append((rows.tolist(), filled.ends, [(e.part.name, e.first, e.last) for e in held_out.extents]))
    assert contents[0] == contents[1]
    store.rm("/packed", recursive=True)


def test_what_cannot_be_packed_is_refused(folder: Path, tmp_path: Path) -> None:
    config = DataConfig(sources={"made": SourceConfig(path=str(folder))}, packing=Packing.best_fit)
    with pytest.raises(UserError, match=r"sources\.made: .* packed for samples of 16, not of 32; .*sequence_length=32"):
        build_corpus(config, VOCABULARY, 32)
    write_dataset(tmp_path / "plain", [[20, 30]])
    plain = replace(config, sources={"made": SourceConfig(path=str(tmp_path / "plain"))})
    with pytest.raises(UserError, match="packed for samples of no length, not of 16"):
        build_corpus(plain, VOCABULARY, LENGTH)
    bare = replace(config, sources={"made": SourceConfig(path=str(tmp_path / "plain/part-000"))})
    with pytest.raises(UserError, match="is a bare Megatron prefix"):
        build_corpus(bare, VOCABULARY, LENGTH)
    (tmp_path / "a.txt").write_text("words " * 100)
    text = replace(config, sources={**config.sources, "text": SourceConfig(path=str(tmp_path / "a.txt"))})
    with pytest.raises(UserError, match=r"sources\.text: is text, and windows are packed when data is prepared"):
        build_corpus(text, VOCABULARY, LENGTH)


def test_the_tokenizer_of_a_run_of_packed_windows_is_found_again(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text(train(["some words of a text"], 300).to_str())
    config = DataConfig(
        sources={"made": SourceConfig(path=str(folder))}, packing=Packing.best_fit, cache_dir=str(tmp_path / "cache")
    )
    fingerprints = {"made": build_corpus(config, VOCABULARY, LENGTH).sources["made"].fingerprint}
    assert tokenizer_of_run(config, VOCABULARY, fingerprints, sequence_length=LENGTH).size


def test_an_epoch_foretells_every_token_of_a_piece_but_its_first(folder: Path) -> None:
    source = loader(folder)
    windows = pieces(folder)
    batches = [batch for _ in windows for batch in source.next_step()]
    assert source.mix() == {"made": len(windows)}
    # No token of this dataset that ends a document is END, so no loss goes from one into the next.
    predicted = sum(float(batch.mask_BS.sum()) for batch in batches)
    assert predicted == sum(map(sum, SHARDS)) - sum(map(len, windows))
