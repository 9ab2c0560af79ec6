"""Gradient buckets: one flat stretch of gradients, announced as soon as its reduction inside the site has begun."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from isthmus.parallelism.config import ParallelConfig, default_bucket
from isthmus.parallelism.slices import Piece, Slice, slices_of
from isthmus.parallelism.stopwatch import Stopwatch


@dataclass(frozen=True)
class GradientBucket:
    """What a bucket's reduction leaves on this rank, as sums over the site's tokens, not yet divided by them.

    Attributes:
        index: number of the bucket on this rank, the same at every step.
        slices: (address, flat view of the gradient) of each part that this rank owns.
        wait: orders what follows after the reduction inside the site: on a CPU it blocks, on a GPU the calling thread's
            current stream waits, and the host does not.
    """

    index: int
    slices: list[tuple[Slice, Tensor]]
    wait: Callable[[], None]


BucketReady = Callable[[GradientBucket], None]


class _FirstStage:
    """Megatron buckets gradients on the first pipeline stage only; each stage passes for the first one here."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


def wrap(
    chunks: list[Any],
    config: TransformerConfig,
    parallel: ParallelConfig,
    groups: ProcessGroupCollection,
    *,
    sharded: bool,
) -> list[Any]:
    """Wrap each chunk in Megatron's DistributedDataParallel, in buckets on every pipeline stage."""
    held = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=sharded,
        overlap_grad_reduce=parallel.overlap,
        overlap_param_gather=parallel.overlap and sharded,
        bucket_size=parallel.bucket_parameters or default_bucket(held),
        average_in_collective=False,
    )
    as_first = ProcessGroupCollection()
    for name, group in vars(groups).items():
        setattr(as_first, name, group)
    as_first.pp = _FirstStage()
    return [DistributedDataParallel(config, ddp_config, chunk, pg_collection=as_first) for chunk in chunks]


def time_parameter_gathers(chunks: list[Any], watch: Stopwatch) -> None:
    """Have `watch` measure how long forward passes of training wait for the parameters that other ranks update."""

    def timed(finish: Callable[..., None]) -> Callable[..., None]:
        def wait(*args: Any, **named: Any) -> None:
            with watch.measure() if torch.is_grad_enabled() else nullcontext():
                finish(*args, **named)

        return wait

    for chunk in chunks:
        for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
            group.finish_param_sync = timed(group.finish_param_sync)


def announce_buckets(
    chunks: list[Any], pieces: dict[torch.nn.Parameter, list[Piece]], callback: BucketReady
) -> list[GradientBucket]:
    """Call `callback` whenever a bucket's reduction has been started; return all buckets in their order.

    In the first step Megatron does not know yet which gradients to expect and starts all buckets after the backward
    pass; from the second step on each starts as soon as its last gradient is there.
    """
    buckets: list[GradientBucket] = []
    for chunk in chunks:
        for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
            bucket = GradientBucket(index=len(buckets), slices=list(_owned(group, pieces)), wait=_already_reduced)
            group.start_grad_sync = _announcing(group, bucket, callback)
            buckets.append(bucket)
    return buckets


def _announcing(group: Any, bucket: GradientBucket, callback: BucketReady) -> Callable[..., None]:
    start = group.start_grad_sync

    def start_and_announce(*args: Any, **kwargs: Any) -> None:
        start(*args, **kwargs)
        # Taken now: Megatron forgets the handle when it has waited itself, on a GPU for its own stream only.
        handle = group.grad_reduce_handle
        callback(bucket if handle is None else dataclasses.replace(bucket, wait=handle.wait))

    return start_and_announce


def _already_reduced() -> None:
    """There was nothing to reduce, or it was done at once."""


def _owned(group: Any, pieces: dict[torch.nn.Parameter, list[Piece]]) -> Iterator[tuple[Slice, Tensor]]:
    """Yield the parts of a bucket group that this rank owns after the reduction."""
    sharded = group.ddp_config.use_distributed_optimizer
    for bucket in group.buckets:
        size = bucket.grad_data.numel()
        begin, end = 0, size
        if sharded:
            shard = size // group.intra_distributed_optimizer_instance_size
            begin = shard * group.intra_distributed_optimizer_instance_rank
            end = begin + shard
        for parameter in bucket.params_list:
            # Where the parameter lies in the bucket follows from where its gradient lies in memory.
            gradient = parameter.main_grad.view(-1)
            at = (gradient.data_ptr() - bucket.grad_data.data_ptr()) // gradient.element_size()
            low, high = max(begin - at, 0), min(end - at, parameter.numel())
            for where, first, last in slices_of(pieces[parameter], low, high):
                yield where, gradient[first:last]
