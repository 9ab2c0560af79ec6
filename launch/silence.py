"""The last resort against ranks that hang together with what watches them: no sign of life for too long."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLLS = 20  # in the time that silence is allowed to last


class Silence:
    """Whether a machine's ranks were ended because they gave no sign of life."""

    def __init__(self) -> None:
        self.broken = False


@contextmanager
def listening_for(sign: Path, seconds: float, end_all: Callable[[], None]) -> Iterator[Silence]:
    """Within: call `end_all` when the file `sign` has not been touched for so long.

    It counts from the beginning: what was touched before was another attempt's.
    """
    silence, over = Silence(), threading.Event()

    def listen() -> None:
        heard, seen = time.monotonic(), _touched(sign)
        while not over.wait(seconds / _POLLS):
            if (touched := _touched(sign)) != seen:
                heard, seen = time.monotonic(), touched
            elif time.monotonic() - heard > seconds:
                silence.broken = True
                end_all()
                return

    thread = threading.Thread(target=listen, name="silence", daemon=True)
    thread.start()
    try:
        yield silence
    finally:
        over.set()
        thread.join()


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
