"""A bar on standard error while bytes are read, where that is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn


@contextmanager
def reading(total_bytes: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield what is to be told the number of bytes that were read since it was last told."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    off = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as progress:
        task = progress.add_task("reading", total=total_bytes)
        yield lambda count: progress.advance(task, count)
