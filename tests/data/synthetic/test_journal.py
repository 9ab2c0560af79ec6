"""The journal gives back what was written, whatever was torn off its end."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.data.synthetic.journal import Answer, Journal, Refused, Spent
from isthmus.data.synthetic.protocols import Completion, Verdict, digest
from isthmus.errors import UserError

SAID = Completion("a \U0001f600 \u2028 text\nin lines", 3, 4, "stop")


def write(path: Path) -> None:
    journal = Journal(path)
    journal.answers([(0, "k0", SAID, 0.5)])
    journal.answers([(1, "k1", SAID, 0.25), (2, "k2", Refused("filtered"), 0.0)])
    journal.verdict(1, "v1", Verdict(False, "wrong", {"stderr": "x"}))
    journal.outcome(2, {"item": "two", "tries": []})
    journal.outcome(0, {"item": "zero", "tries": [1]})
    journal.close()


def test_what_was_written_is_known_again(tmp_path: Path) -> None:
    write(tmp_path / "j")
    journal = Journal(tmp_path / "j")
    assert journal.known(1, "k1") == SAID
    assert journal.known(1, "v1") == Verdict(False, "wrong", {"stderr": "x"})
    assert journal.known(0, "k0") is None, "a finished item's answers are forgotten"
    assert journal.spent == Spent(requests=3, prompt_tokens=6, completion_tokens=8, cost=0.75)
    assert [outcome["item"] for outcome in journal.finished(10)] == ["zero", "two"]
    assert [outcome["item"] for outcome in journal.finished(2)] == ["zero"]
    assert (journal.done(0, "zero"), journal.done(1, "one"), journal.done(9, "nine")) == (True, False, False)
    with pytest.raises(UserError, match="item 0 was another one"):
        journal.done(0, "nil")
    journal.close()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1_000))
def test_a_torn_end_is_cut_off_and_written_anew(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "j")
        write(path)
        whole = path.read_bytes()
        cut = min(cut, len(whole))
        path.write_bytes(whole[: len(whole) - cut])
        kept = whole[: len(whole) - cut].rpartition(b"\n")[0].count(b"\n") + (
            1 if b"\n" in whole[: len(whole) - cut] else 0
        )
        journal = Journal(path)
        batch: list[Answer | None] = [journal.known(1, "k1"), journal.known(2, "k2")]
        if kept < 4:  # item 2 is not finished yet
            assert batch in ([None, None], [SAID, Refused("filtered")]), "a batch is whole or not there"
        journal.answers([(5, "k5", SAID, 0.0)])
        journal.close()
        lines = path.read_bytes().splitlines(keepends=True)
        assert len(lines) == kept + 1
        assert b"".join(lines[:-1]) == b"".join(whole.splitlines(keepends=True)[:kept])
        again = Journal(path)
        assert again.known(5, "k5") == SAID
        again.close()


def test_damage_elsewhere_is_refused_with_its_line(tmp_path: Path) -> None:
    write(tmp_path / "j")
    content = (tmp_path / "j").read_bytes().split(b"\n")
    content[2] = content[2][:-9]
    (tmp_path / "j").write_bytes(b"\n".join(content))
    with pytest.raises(UserError, match="j:3: is damaged"):
        Journal(tmp_path / "j")


def test_a_failed_write_leaves_no_torn_line_and_nothing_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    journal = Journal(tmp_path / "j")
    real, calls = os.write, iter([None])

    def full(file: int, content: bytes) -> int:
        if next(calls, True) is None:
            return real(file, content[:7])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space"):
        journal.answers([(5, "k5", SAID, 0.0)])
    monkeypatch.undo()
    assert (tmp_path / "j").read_bytes() == before
    with pytest.raises(UserError, match="could not be written"):
        journal.answers([(6, "k6", SAID, 0.0)])
    journal.close()
    assert (tmp_path / "j").read_bytes() == before


def test_what_a_refusal_cost_is_known_again_and_so_are_odd_texts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.answers([(0, "k0", Refused("filtered", 30, 4), 0.5)])
    journal.verdict(0, digest("\ud800"), Verdict(False, "odd", {"text": "\ud800"}))
    journal.close()
    journal = Journal(tmp_path / "j")
    assert journal.known(0, "k0") == Refused("filtered", 30, 4)
    assert journal.known(0, digest("\ud800")) == Verdict(False, "odd", {"text": "\ud800"})
    assert journal.spent == Spent(requests=1, prompt_tokens=30, completion_tokens=4, cost=0.5)
    journal.close()
