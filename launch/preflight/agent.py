"""Starts the ranks of a preflight on this machine, like training's: torchrun's agent in this process."""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence

from isthmus.errors import EXIT_OK
from isthmus.processes import DIE_WITH_PARENT


def run_ranks(processes: int, arguments: Sequence[str]) -> tuple[int, int]:
    """Run `python ARGUMENTS` on so many ranks to their end; return the first that failed, and its exit code."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ[DIE_WITH_PARENT] = "1"
    with tempfile.TemporaryDirectory(prefix="isthmus-preflight-") as scratch:
        agent = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="preflight",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",  # the machine's own name may lead nowhere
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
        )
        try:
            elastic_launch(agent, sys.executable)(*arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return rank, failure.exitcode
    return 0, EXIT_OK
