"""Documents of a source: the user's text files, or the corpus that every installation carries."""

import glob
import hashlib
import html
import itertools
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from inspect import cleandoc
from pathlib import Path

from isthmus.data.shards.manifest import is_synthetic_text
from isthmus.data.synthetic import arithmetic
from isthmus.errors import UserError

TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".vtt", ".srt")
_SYNTHETIC_DOCUMENTS = 1_500
_SHORTEST_DOCSTRING = 80  # characters: shorter ones are signatures, not text


@dataclass(frozen=True)
class Document:
    """A text and where it came from."""

    identity: str
    text: str


def read_source(name: str, path: str | None) -> list[Document]:
    """Return the documents of a source, in an order that does not depend on the machine.

    Raises:
        UserError: no such embedded source, no file at `path`, or a file that cannot be read as UTF-8 text.
    """
    where = f"data.sources.{name}"
    if path is not None:
        documents = list(_read_path(path, f"{where}.path"))
    elif name in EMBEDDED:
        documents = list(EMBEDDED[name]())
    else:
        raise UserError(
            "has no path, and the embedded corpus has no source of this name",
            where=where,
            fix=f"give {where}.path, or use one of: {', '.join(EMBEDDED)}",
        )
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise UserError("is empty", where=f"{where}.path", fix="it needs at least two documents of text")
    return sorted(documents, key=lambda document: document.identity)


def is_synthetic(path: str | None) -> bool:
    """Say whether any of a source's files lies where `isthmus data synthesize` writes."""
    by_folder = {file.parent: file for file in _files(path)} if path is not None else {}
    return any(is_synthetic_text(file) for file in by_folder.values())


def split_held_out(documents: list[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """Split whole documents into (train, held out): the lowest hashes are held out, about `fraction` of the bytes.

    At least one document is held out where there are two. The split of a document depends on nothing but its
    identity's rank by hash, so that it stays where it is when the order of files changes.
    """
    by_hash = sorted(documents, key=lambda document: hashlib.sha256(document.identity.encode()).digest())
    wanted = fraction * sum(len(document.text) for document in documents)
    chosen: set[str] = set()
    size = 0
    for document in by_hash[: len(documents) - 1]:
        if fraction <= 0 or size >= wanted:
            break
        # A document far larger than the share itself (one book among notes) would leave little to train on.
        if chosen and size + len(document.text) > 2 * wanted:
            continue
        chosen.add(document.identity)
        size += len(document.text)
    train = [document for document in documents if document.identity not in chosen]
    return train, [document for document in documents if document.identity in chosen]


def _read_path(path: str, where: str) -> Iterator[Document]:
    root, files = Path(path).expanduser(), _files(path)
    # Identities are relative to what is fixed of the path, so that they are unique and do not name the machine.
    base = root if root.is_dir() else _fixed_part(root)
    if not files:
        raise UserError(
            f"nothing to read at {path}",
            where=where,
            fix=f"give a file, folder or glob of {', '.join(TEXT_SUFFIXES)}",
        )
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read: {error}", where=str(file), fix="it must be UTF-8 text") from None
        yield from _parse(file, text, identity=file.relative_to(base).as_posix())


def _files(path: str) -> list[Path]:
    root = Path(path).expanduser()
    if root.is_dir():
        return sorted(file for file in root.rglob("*") if file.suffix in TEXT_SUFFIXES)
    return sorted(Path(match) for match in glob.glob(str(root), recursive=True))


def _fixed_part(pattern: Path) -> Path:
    """Return the folder above the first part of a glob that has a wildcard, or above the file itself."""
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    return fixed if fixed != pattern else pattern.parent


def _parse(file: Path, text: str, identity: str) -> Iterator[Document]:
    if file.suffix == ".jsonl":
        # Only "\n" ends a line: JSON strings may hold U+2028 and others at which str.splitlines() would cut.
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            try:
                content = json.loads(line)["text"]
                if not isinstance(content, str):
                    raise TypeError(content)
                yield Document(f"{identity}:{number}", content)
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(
                    'is not an object with a "text"', where=f"{file}:{number}", fix="write one JSON object per line"
                ) from None
    elif file.suffix in (".vtt", ".srt"):
        yield Document(identity, transcript_text(text))
    else:
        yield Document(identity, text)


_TIMING = re.compile(r"^[\d:.,]+ --> [\d:.,]+")
_VOICE = re.compile(r"<v(?:\.[^ >]*)? ([^>]+)>")
_TAG = re.compile(r"<[^>]*>")


def transcript_text(captions: str) -> str:
    """Return the spoken text of a WebVTT or SubRip file: a paragraph per speaker's turn, no timings or cue numbers."""
    paragraphs: list[list[str]] = [[]]
    speaker = ""
    for block in re.split(r"\n\s*\n", captions.replace("\r\n", "\n")):
        lines = block.strip().splitlines()
        timing = next((index for index, line in enumerate(lines) if _TIMING.match(line)), None)
        if timing is None:  # header, NOTE or STYLE
            continue
        spoken = " ".join(line.strip() for line in lines[timing + 1 :])
        voice = _VOICE.search(spoken)
        if voice and voice[1] != speaker:
            speaker = voice[1]
            paragraphs.append([f"{speaker}:"])
        elif re.match(r"[A-Z][A-Z .'-]+: ", spoken):
            paragraphs.append([])
        paragraphs[-1].append(html.unescape(_TAG.sub("", spoken)).strip())
    return "\n\n".join(" ".join(paragraph) for paragraph in paragraphs if paragraph)


def _samples(folder: str) -> Iterator[Document]:
    root = resources.files("isthmus.data") / "samples" / folder
    for entry in root.iterdir():
        if entry.name.endswith(TEXT_SUFFIXES):
            yield from _parse(Path(entry.name), entry.read_text(encoding="utf-8"), f"samples/{folder}/{entry.name}")


def _web() -> Iterator[Document]:
    """Our pages, the Python manual's topics, and the docstrings of the standard library, a document per module."""
    from pydoc_data.topics import topics

    yield from _samples("web")
    for topic, text in topics.items():
        yield Document(f"python/topics/{topic}", text)
    library = Path(sysconfig.get_path("stdlib"))
    docstring = re.compile(r'[rR]?"""(.*?)"""', re.DOTALL)
    skipped = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "pydoc_data", "__pycache__"}
    for folder, below, files in os.walk(library):
        below[:] = [name for name in below if name not in skipped]  # not entered: others may be installed there
        for file in (Path(folder, name) for name in files if name.endswith(".py")):
            strings = (cleandoc(match) for match in docstring.findall(file.read_text("utf-8", errors="replace")))
            text = "\n\n".join(string for string in strings if len(string) >= _SHORTEST_DOCSTRING)
            yield Document(f"python/library/{file.relative_to(library).as_posix()}", text)


def _synthetic() -> Iterator[Document]:
    for number, text in enumerate(arithmetic.documents(_SYNTHETIC_DOCUMENTS, seed=20240229)):
        yield Document(f"arithmetic/{number:05d}", text)


EMBEDDED: dict[str, Callable[[], Iterator[Document]]] = {
    "web": _web,
    "transcripts": lambda: _samples("transcripts"),
    "synthetic": _synthetic,
}
