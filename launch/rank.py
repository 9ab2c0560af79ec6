"""One rank that keeps to its share of the node's cores: `python -m isthmus.launch.rank --affinity cores WORDS`."""

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Bind this process, then train as the other words say."""
    option, kind, *words = argv
    assert (option, kind) == ("--affinity", "cores")
    mine = share_of(sorted(os.sched_getaffinity(0)), int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    os.sched_setaffinity(0, mine)  # before torch is loaded: its threads inherit it
    from isthmus.train.entry import main as train

    return train(words)


def share_of(cores: Sequence[int], rank: int, ranks: int) -> Sequence[int]:
    """Return the cores of one of so many ranks: neighbours, which share caches; one shared where there are too few."""
    if len(cores) < ranks:
        return [cores[rank % len(cores)]]
    return cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
