"""Shards: Megatron reads ours, we read Megatron's, and damage is an error."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.shards.dataset import Dataset
from isthmus.data.shards.imports import expand_prefixes, import_shards
from isthmus.data.shards.index import token_dtype, write_index
from isthmus.data.shards.shard import Shard
from isthmus.errors import UserError

DOCUMENTS = [[1, 2, 3], [], [65_499], list(range(1000)), [7]]


def write_shard(prefix: Path, documents: list[list[int]], dtype: np.dtype) -> None:
    prefix.with_suffix(".bin").write_bytes(b"".join(np.asarray(tokens, dtype=dtype).tobytes() for tokens in documents))
    write_index(prefix.with_suffix(".idx"), dtype, np.array([len(tokens) for tokens in documents], dtype=np.int32))


@pytest.mark.parametrize("vocabulary", [65_499, 65_500])
@pytest.mark.parametrize("documents", [DOCUMENTS, [[5]], []], ids=["several", "one", "none"])
def test_megatrons_dataset_reads_the_same_tokens(vocabulary: int, documents: list[list[int]], tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dtype = token_dtype(vocabulary)
    assert dtype.itemsize == (2 if vocabulary < 65_500 else 4)
    write_shard(tmp_path / "ours", documents, dtype)
    ours = Shard(tmp_path / "ours")
    assert [tokens.tolist() for tokens in ours.documents()] == documents
    if documents:  # Megatron cannot map an empty file
        theirs = IndexedDataset(str(tmp_path / "ours"))
        assert [theirs[number].tolist() for number in range(len(theirs))] == documents
        assert theirs.document_indices.tolist() == list(range(len(documents) + 1))


@pytest.mark.parametrize("multimodal", [False, True])
def test_a_dataset_of_megatrons_builder_imports_without_a_copy(multimodal: bool, tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    (tmp_path / "theirs").mkdir()
    prefix = tmp_path / "theirs/corpus_text_document"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.int32, multimodal=multimodal)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5]), [2, 3], [0, 1])  # a document of two sequences
    builder.add_item(torch.tensor([70_000]))
    builder.end_document()
    builder.finalize(f"{prefix}.idx")
    before = sorted((path.name, path.stat().st_ino) for path in (tmp_path / "theirs").iterdir())

    import_shards(expand_prefixes([str(tmp_path / "theirs")]), tmp_path / "out", source="theirs", tokenizer={})

    dataset = Dataset(tmp_path / "out")
    assert [dataset.document(number).tokens.tolist() for number in range(2)] == [[1, 2, 3, 4, 5], [70_000]]
    assert (dataset.documents, dataset.tokens) == (2, 6)
    assert not list(dataset.damaged())
    assert sorted((path.name, path.stat().st_ino) for path in (tmp_path / "theirs").iterdir()) == before
    assert not list((tmp_path / "out").rglob("*.bin"))
    assert Shard(prefix).index.document_starts().tolist() == [0, 5, 6]


def test_a_changed_byte_is_found_by_its_block(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", DOCUMENTS, np.dtype("<u2"))
    import_shards([tmp_path / "a"], tmp_path / "out", source="a", tokenizer={})
    content = bytearray((tmp_path / "a.bin").read_bytes())
    content[100] ^= 1
    (tmp_path / "a.bin").write_bytes(content)
    (line,) = Dataset(tmp_path / "out").damaged()
    assert "block 0" in line


DAMAGE = {
    "truncated .bin": ("bin", lambda content: content[:-2], "points to byte"),
    "truncated .idx": ("idx", lambda content: content[:-1], "its counts make"),
    "empty .idx": ("idx", lambda content: b"", "cannot be read"),
    "no index": ("idx", lambda content: b"x" * len(content), "no Megatron index"),
    "another version": ("idx", lambda content: content[:9] + b"\x02" + content[10:], "has version 2"),
    "another dtype": ("idx", lambda content: content[:17] + b"\x09" + content[18:], "dtype code 9"),
    "negative length": ("idx", lambda content: content[:34] + b"\xff\xff\xff\xff" + content[38:], "negative lengths"),
    "wrong boundary": ("idx", lambda content: content[:-8] + b"\x09" + content[-7:], "boundaries"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(name: str, tmp_path: Path) -> None:
    suffix, damage, expected = DAMAGE[name]
    write_shard(tmp_path / "a", DOCUMENTS, np.dtype("<u2"))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=expected):
        Shard(tmp_path / "a")


def test_a_file_that_shrinks_after_it_was_opened_is_an_error_not_old_memory(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", DOCUMENTS, np.dtype("<u2"))
    shard = Shard(tmp_path / "a")
    with (tmp_path / "a.bin").open("r+b") as file:
        file.truncate(20)
    with pytest.raises(UserError, match="before the end of a read"):
        shard.document(3)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(content=st.binary(max_size=200), bin_bytes=st.integers(0, 100), header=st.booleans())
def test_no_bytes_make_the_index_reader_crash(content: bytes, bin_bytes: int, header: bool, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    start = b"MMIDIDX\x00\x00\x01" + bytes(7) + b"\x08" if header else b""
    (folder / "a.idx").write_bytes(start + content)
    (folder / "a.bin").write_bytes(bytes(bin_bytes))
    try:
        shard = Shard(folder / "a")
    except UserError:
        return
    for number in range(min(len(shard), 10)):
        shard.document(number)


def test_importing_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        import_shards([tmp_path / "absent"], tmp_path / "out", source="a", tokenizer={})
    with pytest.raises(UserError, match=r"no \.bin with its \.idx"):
        expand_prefixes([str(tmp_path)])
    assert not (tmp_path / "out").exists()
