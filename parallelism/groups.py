"""The process groups of one site, built by Megatron from a Topology."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from isthmus.parallelism import cpu
from isthmus.parallelism.topology import Topology


@contextmanager
def site_groups(
    topology: Topology, *, rank: int, timeout: datetime.timedelta, init_method: str = "env://"
) -> Iterator[ProcessGroupCollection]:
    """Join the site's world and build its groups; leave it and destroy them at the end.

    A single process needs no address: it meets itself in memory. Any wait for another rank ends after `timeout` with
    an error.
    """
    cpu.install()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        # Some launchers show each rank its own GPU only.
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        torch.cuda.set_device(0 if torch.cuda.device_count() == 1 else local_rank)
    alone = {"store": torch.distributed.HashStore()} if topology.world_size == 1 else {"init_method": init_method}
    torch.distributed.init_process_group(backend, rank=rank, world_size=topology.world_size, timeout=timeout, **alone)
    try:
        virtual = topology.virtual_pipeline if topology.virtual_pipeline > 1 else None
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=topology.tensor,
            pipeline_model_parallel_size=topology.pipeline,
            virtual_pipeline_model_parallel_size=virtual,
            context_parallel_size=topology.context,
            expert_model_parallel_size=topology.expert,
            distributed_timeout_minutes=timeout.total_seconds() / 60,
            create_gloo_process_groups=False,
        )
        yield ProcessGroupCollection.use_mpu_process_groups()
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
