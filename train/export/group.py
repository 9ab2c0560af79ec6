"""The processes that share an export: one, or those of a torchrun."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from isthmus.parallelism import cpu


@contextmanager
def processes(rank: int, ranks: int) -> Iterator[Callable[[], None]]:
    """Join the default process group, on CPUs; yield its barrier."""
    cpu.install()
    alone = {"store": torch.distributed.HashStore()} if ranks == 1 else {"init_method": "env://"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks, **alone)
    try:
        yield torch.distributed.barrier
    finally:
        torch.distributed.destroy_process_group()
