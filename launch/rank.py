"""A rank that keeps to its share of the node's cores: `python -m isthmus.launch.rank --affinity cores MODULE WORDS`."""

import os
import runpy
import sys
from collections.abc import Sequence

from isthmus.errors import EXIT_OK


def main(argv: Sequence[str]) -> int:
    """Bind this process, then run the module as the other words say."""
    option, kind, module, *words = argv
    assert (option, kind) == ("--affinity", "cores")
    mine = share_of(sorted(os.sched_getaffinity(0)), int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    os.sched_setaffinity(0, mine)  # before torch is loaded: its threads inherit it
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return EXIT_OK


def share_of(cores: Sequence[int], rank: int, ranks: int) -> Sequence[int]:
    """Return the cores of one of so many ranks: neighbours, which share caches; one shared where there are too few."""
    if len(cores) < ranks:
        return [cores[rank % len(cores)]]
    return cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
