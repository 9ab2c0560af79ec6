"""`isthmus checkpoint export`: a checkpoint in a format of others, under its name only when it is whole."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.reading import reading
from isthmus.launch.words import Words
from isthmus.train.resuming import at_path

if TYPE_CHECKING:
    from isthmus.train.export.source import Source

FORMATS = ("torch_dist", "huggingface")
_PRECISIONS = ("fp32", "bf16")


def export(path: Path, words: Words) -> int:
    """Export the checkpoint that a path means.

    Raises:
        UserError: an unknown format, a damaged checkpoint, or a folder that is there already.
    """
    to = _choice(words, "--to", FORMATS)
    precision = _choice(words, "--precision", _PRECISIONS) if words.value("--precision") else None
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1 and to == "huggingface":
        raise UserError("is written by one process", where="--to huggingface", fix="start it without torchrun")
    found = at_path(path.absolute())
    assert found.manifest is not None
    chosen = words.value("--out")
    default = found.folder.parents[1] / "exports" / f"{found.folder.name}-{to}"
    out = Path(chosen).expanduser() if chosen else default
    if out.exists():
        raise UserError("is there already", where=str(out), fix="remove it, or choose another folder with --out")

    from isthmus.train.export.source import open_source  # late, with torch: a wrong word should not wait for it

    with reading(found.manifest.total_bytes // ranks, quiet=words.flag("--json") or rank > 0) as done:
        source = open_source(found, done, rank=rank, ranks=ranks)
    precision = precision or source.precision
    console = Console(stderr=words.flag("--json"), soft_wrap=True)
    if to == "huggingface":
        _write_huggingface(source, out, precision, console)
    else:
        _write_torch_dist(source, out, precision, rank, ranks)
    if rank == 0:
        step, size = source.manifest.step, sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        console.print(f"step {step} in {precision} ({size / 1e6:.1f} MB) is in {out}", highlight=False)
        if words.flag("--json"):
            print(json.dumps({"folder": str(out), "to": to, "step": step, "precision": precision, "bytes": size}))
    return EXIT_OK


def _write_huggingface(source: "Source", out: Path, precision: str, console: Console) -> None:
    from isthmus.train.export.huggingface import export_huggingface, refuse_what_llama_is_not
    from isthmus.train.export.tokenizer import tokenizer_of

    refuse_what_llama_is_not(source.model)
    config = source.folder.parents[1] / "config.yaml"
    tokenizer = tokenizer_of(config, lambda line: console.print(line, highlight=False))
    with _complete(out) as folder:
        export_huggingface(source, folder, precision, tokenizer)


def _write_torch_dist(source: "Source", out: Path, precision: str, rank: int, ranks: int) -> None:
    from isthmus.train.export.group import processes

    with processes(rank, ranks) as barrier, _complete(out, rank, barrier) as folder:
        from isthmus.train.export.torch_dist import export_torch_dist

        export_torch_dist(source, folder, precision, rank=rank, ranks=ranks)


def _choice(words: Words, option: str, known: tuple[str, ...]) -> str:
    value = words.value(option)
    if value not in known:
        what = "is not given" if value is None else f"is '{value}'"
        raise UserError(what, where=option, fix=f"choose one of: {', '.join(known)}")
    return value


@contextmanager
def _complete(out: Path, rank: int = 0, barrier: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a folder to write in; make what is in it durable, then give it its name."""
    folder = out.with_name(f".{out.name}.unfinished")
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what a crash has left
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot be made: {error.strerror}", where=str(out), fix="choose another --out") from None
    barrier()
    try:
        yield folder
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"cannot be written: {error.strerror}", where=str(out), fix="see to the disk") from None
    barrier()
    if rank == 0:
        for path in [*folder.rglob("*"), folder]:
            _sync(path)
        os.rename(folder, out)
        _sync(out.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
