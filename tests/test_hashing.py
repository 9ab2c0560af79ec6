"""Hashes of files in blocks: whole, damaged, of any length, past the cache or through it."""

import hashlib
from pathlib import Path

import pytest

from isthmus.hashing import check_blocks, digest, hash_blocks

PAGE = 4096


def _content(length: int) -> bytes:
    return b"".join(hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(-(-length // 32)))[:length]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("length", [0, 1, PAGE, PAGE + 1, 2 * PAGE - 1, 24 * PAGE, 24 * PAGE + 7])
def test_blocks_are_hashed_in_order_and_to_the_last_byte(length: int, direct: bool, tmp_path: Path) -> None:
    path, content = tmp_path / "file", _content(length)
    path.write_bytes(content)
    expected = [digest(content[first : first + PAGE]) for first in range(0, length, PAGE)]
    assert hash_blocks(path, PAGE) == expected
    told: list[int] = []
    assert check_blocks(path, length, expected, PAGE, told.append, direct=direct) == ""
    assert sum(told) == length


@pytest.mark.parametrize("direct", [False, True])
def test_damage_is_found_where_it_is(direct: bool, tmp_path: Path) -> None:
    path, content = tmp_path / "file", _content(20 * PAGE + 100)
    hashes = [digest(content[first : first + PAGE]) for first in range(0, len(content), PAGE)]
    for block in (0, 7, 19, 20):
        damaged = bytearray(content)
        damaged[block * PAGE + 50] ^= 16
        path.write_bytes(damaged)
        wrong = check_blocks(path, len(content), hashes, PAGE, direct=direct)
        end = min((block + 1) * PAGE, len(content))
        assert wrong == f"file is damaged between byte {block * PAGE} and {end} (block {block})"


def test_hashes_that_do_not_fit_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    blocks = [digest(b"x" * 400), digest(b"x" * 400), digest(b"x" * 200)]
    assert check_blocks(path, 1000, blocks, 400) == ""
    assert "2 hashes, which do not cover it" in check_blocks(path, 1000, blocks[:2], 400)
    assert "1000 bytes instead of 999" in check_blocks(path, 999, blocks, 400)
    assert "cannot be read" in check_blocks(tmp_path / "none", 0, [], 400)
