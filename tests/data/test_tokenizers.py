"""Every family of tokenizers behind one interface."""

import base64
import io
from pathlib import Path

import pytest

from isthmus.data.tokenizer import train
from isthmus.data.tokenizers import TextTokenizer, describe, load_text_tokenizer
from isthmus.errors import UserError

TEXTS = ["The quick brown fox jumps over the lazy dog.", "", "  two  spaces\nand a line", "naïve 12345"]


def make_bpe(folder: Path) -> Path:
    path = folder / "bpe.json"
    path.write_text(train(TEXTS * 5, 400).to_str())
    return path


def make_sentencepiece(folder: Path) -> Path:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "sp.model").write_bytes(model.getvalue())
    return folder / "sp.model"


def make_tiktoken(folder: Path) -> Path:
    ranks = [bytes([number]) for number in range(256)] + [b"th", b"the", b" the"]
    lines = [base64.b64encode(token) + f" {rank}".encode() for rank, token in enumerate(ranks)]
    (folder / "own.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    return folder / "own.tiktoken"


MAKERS = {"tokenizers": make_bpe, "sentencepiece": make_sentencepiece, "tiktoken": make_tiktoken}


@pytest.fixture(params=MAKERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> TextTokenizer:
    return load_text_tokenizer(str(MAKERS[request.param](tmp_path)))


def test_texts_come_back(tokenizer: TextTokenizer) -> None:
    encoded = tokenizer.encode(TEXTS)
    assert [tokenizer.decode(ids.tolist()) for ids in encoded] == TEXTS
    assert all((ids < tokenizer.size).all() and (ids >= 0).all() for ids in encoded)
    assert 0 <= tokenizer.end < tokenizer.size
    assert all(tokenizer.end not in ids for ids in encoded)
    assert describe(tokenizer)["sha256"] == tokenizer.hash


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    path = make_bpe(tmp_path)
    before = load_text_tokenizer(str(path)).hash
    (tmp_path / "copy.json").write_bytes(path.read_bytes())
    assert load_text_tokenizer(str(tmp_path / "copy.json")).hash == before
    path.write_text(train(TEXTS * 5, 300).to_str())
    assert load_text_tokenizer(str(path)).hash != before


def test_the_end_token_can_be_named(tmp_path: Path) -> None:
    path = str(make_bpe(tmp_path))
    assert load_text_tokenizer(path, "a").end != load_text_tokenizer(path).end
    with pytest.raises(UserError, match="has no token '<nope>'"):
        load_text_tokenizer(path, "<nope>")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b"{", "cannot be loaded"),
        ("a.model", b"junk", "cannot be loaded"),
        ("a.tiktoken", b"junk", "cannot be loaded"),
        ("a.bin", b"junk", "is of no known kind"),
    ],
)
def test_damaged_files_are_refused(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        load_text_tokenizer(str(tmp_path / name))
    with pytest.raises(UserError, match="cannot be read"):
        load_text_tokenizer(str(tmp_path / "absent.json"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_text_tokenizer("tiktoken:no-such-encoding")
