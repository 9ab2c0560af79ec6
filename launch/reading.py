"""A bar on standard error while bytes are read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn


@contextmanager
def reading(total_bytes: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield what is to be told the number of bytes that were read since it was last told."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("reading", total=total_bytes)
        yield lambda count: progress.advance(task, count)
