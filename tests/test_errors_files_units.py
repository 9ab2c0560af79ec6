"""The foundations: one-line errors, files that are old or new but never half, numbers printed for people."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from isthmus.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from isthmus.files import write_atomically, write_json
from isthmus.units import format_count, format_duration


@pytest.mark.parametrize(
    ("where", "fix", "line"),
    [
        ("", "", "it broke"),
        ("a.key", "", "a.key: it broke"),
        ("", "mend it", "it broke; mend it"),
        ("a.key", "mend it", "a.key: it broke; mend it"),
    ],
)
def test_error_says_where_what_and_fix(where: str, fix: str, line: str) -> None:
    assert str(UserError("it broke", where=where, fix=fix)) == line


def test_error_is_one_line_even_if_its_cause_is_not() -> None:
    assert str(UserError("first\n  second\r\n\tthird", fix="a\nb")) == "first second third; a b"


def test_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UserError("is 0", where="train.steps", fix="it starts at 1")))
    assert str(error) == "train.steps: is 0; it starts at 1"
    assert (error.what, error.where, error.fix) == ("is 0", "train.steps", "it starts at 1")


def test_exit_codes() -> None:
    assert UserError("x").exit_code == EXIT_USER_ERROR == 2  # DESIGN.md, "Commands"
    assert EXIT_INTERRUPTED == 130  # 128 + SIGINT


def test_write_makes_the_folder_and_leaves_one_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new\x00")
    assert path.read_bytes() == b"new\x00"
    assert os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644  # mkstemp's own 0600 would hide a run from its group


@pytest.mark.parametrize("function", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_in_the_middle_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, failure: BaseException
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args: Any) -> None:
        raise failure

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(failure)):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_data_are_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def spy(*args: Any, name: str = name, original: Any = original) -> None:
            calls.append(name)
            original(*args)

        monkeypatch.setattr(os, name, spy)
    write_atomically(tmp_path / "file", b"x")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder that holds the name


def test_write_json_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": [1, None]})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert path.read_text().endswith("\n")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1K"),  # never '1e+03'
        (1_000, "1K"),
        (1_234_567, "1.23M"),  # the docstring's example
        (999_960, "1M"),
        (-4_560, "-4.56K"),
        (8.03e9, "8.03B"),
        (15e12, "15T"),
        (2e15, "2P"),
        (0.5, "0.5"),
    ],
)
def test_format_count(number: float, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.2s"),
        (9.4, "9.4s"),
        (42.4, "42s"),
        (59.7, "1m00s"),
        (125, "2m05s"),
        (3_599.6, "1h00m"),
        (3_725, "1h02m"),  # the docstring's example
        (86_400 + 7_200, "1d02h"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
