"""Which files a path means, on this machine or in any store that fsspec knows."""

import contextlib
import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from isthmus.data.extras import need
from isthmus.errors import UserError

COMPRESSIONS = (".gz", ".zst")
FORMATS = {
    ".warc": "warc",
    ".wet": "warc",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".vtt": "captions",
    ".srt": "captions",
    ".sbv": "captions",
    ".json3": "captions",
    ".json": "captions",
    ".srv1": "captions",
    ".srv2": "captions",
    ".srv3": "captions",
    ".xml": "captions",
    ".ttml": "captions",
    ".dfxp": "captions",
    ".zip": "zip",
    ".tar": "tar",
    ".tgz": "tar",
}


@dataclass(frozen=True)
class InputFile:
    """A file to read.

    `identity` is its path below the fixed part of what was asked for, the same on every machine; `stamp` changes when
    the file does, and is only compared with itself.
    """

    identity: str
    url: str
    bytes: int
    stamp: str
    format: str


def list_files(paths: Sequence[str], formats: Sequence[str], where: str) -> list[InputFile]:
    """Return the files that paths, folders and globs mean, sorted by identity.

    Raises:
        UserError: nothing is there, a file is of no known kind, or a store needs a package that is missing.
    """
    found: list[InputFile] = []
    for number, path in enumerate(paths):
        prefix = f"{number}/" if len(paths) > 1 else ""
        found += [_with_prefix(file, prefix) for file in _list(path, formats, where)]
    return sorted(found, key=lambda file: file.identity)


@contextlib.contextmanager
def open_file(url: str) -> Iterator[BinaryIO]:
    """Open a local path or any URL for reading and seeking."""
    if "://" not in url:
        with open(url, "rb") as file:
            yield file
        return
    with need("fsspec").open(url, "rb") as remote:
        yield cast(BinaryIO, remote)


def format_of(name: str) -> str:
    """Return what a file of this name holds, or "" where the name does not tell."""
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    return FORMATS.get(path.suffix, "")


def is_compressed(name: str) -> bool:
    return name.lower().endswith((*COMPRESSIONS, ".tgz", ".zip"))


def _list(path: str, formats: Sequence[str], where: str) -> list[InputFile]:
    filesystem, root = _filesystem(path, where)
    magic = glob.has_magic(root)
    try:
        if magic:
            names = [name for name in filesystem.glob(root) if not filesystem.isdir(name)]
            base = "/".join(itertools.takewhile(lambda part: not glob.has_magic(part), root.split("/")))
        elif filesystem.isdir(root):
            names = [name for name in filesystem.find(root) if format_of(name) in formats]
            base = root.rstrip("/")
        else:
            names = [root] if filesystem.exists(root) else []
            base = root.rpartition("/")[0]
        files = [_describe(filesystem, path, name, base) for name in names]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be listed: {error}", where=where, fix=f"check {path}") from None
    if not files:
        raise UserError(
            f"nothing to read at {path}", where=where, fix=f"give files, folders or globs of {_names(formats)}"
        )
    for file in files:
        if file.format not in formats:
            raise UserError(
                f"{file.identity} is of no kind that this source reads", where=where, fix=f"it reads {_names(formats)}"
            )
    return files


def _filesystem(path: str, where: str) -> tuple[Any, str]:
    fsspec = need("fsspec")
    try:
        filesystem, root = fsspec.core.url_to_fs(path if "://" in path else _expand(path))
        return filesystem, str(root)
    except ImportError as error:
        raise UserError(
            f"{path.partition('://')[0]} files need a package: {error}", where=where, fix="install it"
        ) from None
    except ValueError as error:
        raise UserError(f"cannot be opened: {error}", where=where, fix="give a path or an fsspec URL") from None


def _describe(filesystem: Any, path: str, name: str, base: str) -> InputFile:
    info = filesystem.info(name)
    # A name that is no UTF-8 reaches us with surrogates, which no file of ours could hold.
    identity = name.removeprefix(base).lstrip("/").encode("utf-8", "backslashreplace").decode()
    url = name if "://" not in path else filesystem.unstrip_protocol(name)
    return InputFile(
        identity=identity,
        url=url,
        bytes=int(info.get("size") or 0),
        stamp=str(info.get("mtime") or info.get("ETag") or info.get("LastModified") or ""),
        format=format_of(identity),
    )


def _expand(path: str) -> str:
    from pathlib import Path

    return str(Path(path).expanduser())


def _with_prefix(file: InputFile, prefix: str) -> InputFile:
    return InputFile(prefix + file.identity, file.url, file.bytes, file.stamp, file.format)


def _names(formats: Sequence[str]) -> str:
    return ", ".join(suffix for suffix, kind in FORMATS.items() if kind in formats)
