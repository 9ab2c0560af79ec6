"""Files, manifest and scan: what is whole is found, what is broken is named."""

import itertools
import json
import os
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from support.checkpoints import new_store, numbers_of, save, snapshot_of, write_ranks
from support.crash_ranks import manifest_of
from torch import Tensor

from isthmus.fault_tolerance.manifest import Broken, check_hashes, read_manifest
from isthmus.fault_tolerance.reader import Reader
from isthmus.fault_tolerance.records import MANIFEST, Record, rank_file, vote_file
from isthmus.fault_tolerance.snapshot import Snapshot
from isthmus.fault_tolerance.state import join_state, split_state
from isthmus.fault_tolerance.store import expendable


def test_any_safetensors_reader_can_open_a_rank_file(tmp_path: Path) -> None:
    folder = save(new_store(tmp_path), 5)
    with safe_open(folder / rank_file(1), framework="pt") as file:
        (name,) = [key for key in file.keys() if key.startswith("parameter/")]  # noqa: SIM118
        assert torch.equal(file.get_tensor(name), numbers_of(5, 1))


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "a": [1, 2.5, None, True, "x", {"deep": torch.arange(4, dtype=torch.uint8)}],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.25, dtype=torch.float64),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
    }
    plain, tensors = split_state(state)
    back = join_state(json.loads(json.dumps(plain)), tensors)
    assert back["a"][:5] == [1, 2.5, None, True, "x"]
    assert torch.equal(back["a"][5]["deep"], torch.arange(4, dtype=torch.uint8))
    snapshot = Snapshot()
    snapshot.fill([], state)
    (tmp_path / rank_file(0)).write_bytes(snapshot.view())
    read = Reader(tmp_path, manifest_of(1, 1, 1)).state(0)
    assert torch.equal(read["scalar"], state["scalar"])  # type: ignore[arg-type]
    assert read["empty"].shape == (0, 3)
    assert read["bf16"].dtype is torch.bfloat16


def test_state_that_is_no_plain_value_is_refused() -> None:
    with pytest.raises(TypeError, match="state/part is a PosixPath"):
        split_state({"part": Path("x")})


def test_memory_of_a_snapshot_is_used_again() -> None:
    snapshot = snapshot_of(1, 0)
    before = os.fstat(snapshot.descriptor).st_size
    record = Record("parameter", "weight", (12,), (0,), (12,), 0, 6)
    snapshot.fill([(record, numbers_of(2, 0))], {})
    assert os.fstat(snapshot.descriptor).st_size == before


def test_the_bytes_of_a_checkpoint_are_those_of_its_numbers_and_little_more(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    snapshot = Snapshot()
    record = Record("parameter", "weight", (1_000_000,), (0,), (1_000_000,), 0, 1_000_000)
    snapshot.fill([(record, torch.zeros(1_000_000))], {})
    assert snapshot.bytes <= 1.02 * 4_000_000
    assert store.scan() == []


@pytest.mark.parametrize("name", [rank_file(0), rank_file(1), vote_file(0), vote_file(1), MANIFEST])
def test_any_flipped_bit_is_found_and_its_file_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isthmus.fault_tolerance.commit.BLOCK_BYTES", 256)  # several blocks
    folder = save(new_store(tmp_path), 5)
    whole = (folder / name).read_bytes()
    chooser = random.Random(0)
    for _ in range(60):
        place, bit = chooser.randrange(len(whole)), chooser.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        (folder / name).write_bytes(damaged)
        with pytest.raises(Broken, match=name.replace(".", r"\.")):
            check_hashes(folder, read_manifest(folder), range(2))
    (folder / name).write_bytes(whole)
    check_hashes(folder, read_manifest(folder), range(2))


def test_the_place_of_the_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isthmus.fault_tolerance.commit.BLOCK_BYTES", 256)
    folder = save(new_store(tmp_path), 5)
    path = folder / rank_file(1)
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(Broken, match="between byte 256 and 512"):
        check_hashes(folder, read_manifest(folder), [1])


@pytest.mark.parametrize("name", [rank_file(0), vote_file(1), MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "longer"])
def test_a_scan_finds_what_is_missing_or_of_the_wrong_length(name: str, damage: str, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    save(store, 4)
    path = save(store, 5) / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": content[:-1], "empty": b"", "longer": content + b"\n "}[damage])
    newest, older = store.scan()
    assert newest.manifest is None
    assert newest.broken
    assert older.manifest is not None
    assert older.step == 4


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x80\x04\x95",  # a pickle
        b"[]",
        b"{}",
        b'{"sha256": 1}',
        b"null",
        b'{"format": 1, "step": 5, "sha256": "00"}',
        b'{"a": ' * 2000,
    ],
)
def test_a_hostile_manifest_is_broken_and_nothing_else_happens(hostile: bytes, tmp_path: Path) -> None:
    store = new_store(tmp_path)
    (save(store, 5) / MANIFEST).write_bytes(hostile)
    assert store.scan()[0].manifest is None


def test_a_hostile_index_is_refused(tmp_path: Path) -> None:
    record = Record("parameter", "weight", (4,), (0,), (4,), 0, 4)
    for change in ({"stop": 5}, {"start": -1}, {"offset": (1,)}, {"shape": (9,)}, {"shape": (2, 2)}, {"offset": (-1,)}):
        with pytest.raises(ValueError, match="outside"):
            Record.from_json(record.to_json() | change)


def test_a_folder_that_was_never_finished_is_quarantined_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for attempt in (1, 2, 3):
        write_ranks(store, 9, attempt, only=[1])
        (broken,) = store.scan()
        assert "never finished" in broken.broken
        store.quarantine(broken.folder)
    assert store.scan() == []
    assert [path.name for path in store.folder.iterdir()] == ["quarantined-step-0000000009-a0003"]
    assert store.next_attempt() == 4


def test_a_folder_of_another_step_is_not_mistaken(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    save(store, 5).rename(store.path(6, 1))
    assert "is of step 5" in store.scan()[0].broken


def test_a_folder_is_never_written_to_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    save(store, 5)
    with pytest.raises(FileExistsError):
        save(store, 5)


@given(
    steps=st.sets(st.integers(1, 40), max_size=12),
    keep=st.integers(1, 4),
    every=st.integers(0, 10),
    durable=st.integers(0, 40),
)
@settings(deadline=None, max_examples=25)
def test_retention_keeps_the_last_and_every_nth_and_what_another_site_may_need(
    steps: set[int], keep: int, every: int, durable: int
) -> None:
    from isthmus.fault_tolerance.store import Found

    found = [Found(Path(str(step)), step, 1, manifest_of(step, 1)) for step in sorted(steps, reverse=True)]
    gone = {int(path.name) for path in expendable(found, keep=keep, keep_every=every, durable_everywhere=durable)}
    kept = steps - gone
    newest = sorted(steps)[-keep:]
    assert set(newest) <= kept
    assert {step for step in steps if step >= durable} <= kept
    assert {step for step in steps if every and step % every == 0} <= kept
    assert gone == {
        step for step in steps if step not in newest and step < durable and not (every and step % every == 0)
    }


def _cut(whole: Tensor, grid: tuple[int, ...], shards: int) -> list[tuple[Record, Tensor]]:
    """Split a tensor into a grid of boxes, and each box's flat numbers into shards."""
    pieces = []
    counts = [range(parts) for parts in grid]
    for place in torch.cartesian_prod(*[torch.tensor(list(count)) for count in counts]).view(-1, len(grid)).tolist():
        size = [length // parts for length, parts in zip(whole.shape, grid, strict=True)]
        offset = [at * length for at, length in zip(place, size, strict=True)]
        box = whole[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))].reshape(-1)
        borders = [len(box) * part // shards for part in range(shards + 1)]
        for first, last in itertools.pairwise(borders):
            if first < last:
                record = Record("parameter", "w", tuple(whole.shape), tuple(offset), tuple(size), first, last)
                pieces.append((record, box[first:last].clone()))
    return pieces


@given(
    before=st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 1), (1, 4)]),
    after=st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 1), (1, 4)]),
    shards=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
@settings(deadline=None, max_examples=30)
def test_numbers_are_found_whatever_cut_them(
    before: tuple[int, int], after: tuple[int, int], shards: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = torch.randn(8, 12)
    pieces = _cut(whole, before, shards[0])
    folder = tmp_path_factory.mktemp("cut")
    ranks = min(3, len(pieces))
    for rank in range(ranks):
        snapshot = Snapshot()
        snapshot.fill(pieces[rank::ranks], {})
        (folder / rank_file(rank)).write_bytes(snapshot.view())
        snapshot.close()
    wanted = _cut(whole, after, shards[1])
    targets = [(record, torch.full_like(values, torch.nan)) for record, values in wanted]
    Reader(folder, manifest_of(1, 1, ranks)).fill(targets, near=1)
    for (_, filled), (_, values) in zip(targets, wanted, strict=True):
        assert torch.equal(filled, values)


def test_a_number_that_no_file_holds_is_an_error_not_a_zero(tmp_path: Path) -> None:
    pieces = _cut(torch.randn(4, 4), (1, 1), 4)
    snapshot = Snapshot()
    snapshot.fill(pieces[:3], {})
    (tmp_path / rank_file(0)).write_bytes(snapshot.view())
    record = Record("parameter", "w", (4, 4), (0, 0), (4, 4), 0, 16)
    with pytest.raises(Broken, match="no file holds all of parameter of w"):
        Reader(tmp_path, manifest_of(1, 1, 1)).fill([(record, torch.zeros(16))], near=0)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    snapshot = Snapshot()
    snapshot.fill(_cut(torch.randn(4, 4), (1, 1), 1), {})
    (tmp_path / rank_file(0)).write_bytes(snapshot.view())
    record = Record("parameter", "w", (2, 8), (0, 0), (2, 8), 0, 16)
    with pytest.raises(Broken, match=r"is \(4, 4\) there and \(2, 8\) here"):
        Reader(tmp_path, manifest_of(1, 1, 1)).fill([(record, torch.zeros(16))], near=0)
