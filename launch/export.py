"""`isthmus checkpoint export`: a checkpoint in a format of others, under its name only when it is whole."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.reading import reading
from isthmus.launch.words import Words

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
    from isthmus.train.resuming import at_path

    found = at_path(path.absolute())
    chosen = words.value("--out")
    default = found.folder.parents[1] / "exports" / f"{found.folder.name}-{to}"
    out = Path(chosen).expanduser() if chosen else default
    if out.exists():
        raise UserError("is there already", where=str(out), fix="remove it, or choose another folder with --out")

    import torch  # late: a wrong word should not wait for it

    from isthmus.train.export.source import open_source

    assert found.manifest is not None
    with reading(found.manifest.total_bytes // ranks, quiet=words.flag("--json") or rank > 0) as done:
        source = open_source(found, done, rank=rank, ranks=ranks)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, None: source.dtype}[precision]
    told: list[str] = []
    if to == "huggingface":
        from isthmus.train.export.huggingface import export_huggingface
        from isthmus.train.export.tokenizer import tokenizer_of

        tokenizer = tokenizer_of(found.folder.parents[1] / "config.yaml", told.append)
        with _complete(out):
            export_huggingface(source, _unfinished(out), dtype, tokenizer)
    else:
        from isthmus.train.export.group import processes

        with processes(rank, ranks) as barrier, _complete(out, rank, barrier):
            from isthmus.train.export.torch_dist import export_torch_dist

            export_torch_dist(source, _unfinished(out), dtype, rank=rank, ranks=ranks)
    if rank == 0:
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        name = "fp32" if dtype is torch.float32 else "bf16"
        console = Console(stderr=words.flag("--json"), soft_wrap=True)
        for line in told:
            console.print(line, highlight=False)
        console.print(f"step {source.manifest.step} in {name} ({size / 1e6:.1f} MB) is in {out}", highlight=False)
        if words.flag("--json"):
            row = {"folder": str(out), "to": to, "step": source.manifest.step, "precision": name, "bytes": size}
            print(json.dumps(row))
            sys.stdout.flush()
    return EXIT_OK


def _choice(words: Words, option: str, known: tuple[str, ...]) -> str:
    value = words.value(option)
    if value not in known:
        what = "is not given" if value is None else f"is '{value}'"
        raise UserError(what, where=option, fix=f"choose one of: {', '.join(known)}")
    return value


def _unfinished(out: Path) -> Path:
    return out.with_name(f".{out.name}.unfinished")


@contextmanager
def _complete(out: Path, rank: int = 0, barrier: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Make a folder beside `out`, within which it is written; make it durable and give it its name."""
    folder = _unfinished(out)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)  # what a crash has left
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot be made: {error.strerror}", where=str(out), fix="choose another --out") from None
    barrier()
    yield
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
