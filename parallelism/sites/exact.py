"""Exact sync: every step's gradients are summed over the sites, bucket by bucket, beside the backward pass.

The gradients are sums over tokens; so is what crosses. Divided by the tokens of all sites they are the token-weighted
mean, and all that follows (norm, clipping, AdamW) gives the same bits in every site.
"""

import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor

from isthmus.parallelism.engine import Engine, StepLoss
from isthmus.parallelism.gradients import GradientBucket
from isthmus.parallelism.sites.allreduce import AllReduce, Couriers
from isthmus.parallelism.sites.blocks import BlockLayout
from isthmus.parallelism.sites.lane import Exchange, Lane, send_to_all
from isthmus.parallelism.sites.sync import TAGS_PER_ROUND, LaneUser
from isthmus.parallelism.sites.wire import Codec
from isthmus.parallelism.slices import Slice

_LOSS = struct.Struct("<dq")
_LOSS_TAG = TAGS_PER_ROUND - 1


class _Bucket:
    """The exchange of one gradient bucket."""

    def __init__(self, bucket: GradientBucket, lane: Lane, couriers: Couriers, codec: Codec, decay: float) -> None:
        self.views = [view for _, view in bucket.slices]
        self.layout = BlockLayout([view.numel() for view in self.views], codec.block)
        self.reduction = AllReduce(lane, couriers, codec, self.layout, self.views[0].device, decay=decay)

    def prepare(self, wait: Callable[[], None]) -> None:
        wait()
        self.layout.pack(self.views, self.reduction.values_NB)

    def finish(self) -> None:
        self.layout.unpack(self.reduction.values_NB, self.views)


class ExactSync:
    """Sums gradients over sites.

    Args:
        lane: to the ranks of the same number in the other sites.
        codec: how gradients are written; a lossy one gets error feedback with `error_decay`.
        verify_every: steps between comparisons of the parameters; 0 for never.
        threads: of each tensor operation of the couriers.
    """

    def __init__(self, lane: Lane, codec: Codec, *, error_decay: float, verify_every: int, threads: int) -> None:
        self._user = LaneUser(lane)
        self._lane, self._codec = lane, codec
        self._decay, self._verify_every = error_decay, verify_every
        self._couriers = Couriers(threads)
        self._running: list[tuple[_Bucket, Future[bool]]] = []
        self._buckets: list[_Bucket | None] = []
        self._step = 0

    def attach(self, engine: Engine) -> None:
        """Listen to the engine's buckets."""
        self._engine = engine
        self._buckets = [
            # A rank may own nothing of a bucket, in every site alike.
            _Bucket(bucket, self._lane, self._couriers, self._codec, self._decay) if bucket.slices else None
            for bucket in engine.on_bucket_ready(self._ready)
        ]

    def begin(self, step: int) -> None:
        """Prove that all sites start from the same step and the same parameters.

        Raises:
            UserError: they do not.
        """
        self._step = step
        self._user.begin(step, self._engine)
        self._user.compare(self._parameters(), f"at the start, after step {step}", self._engine)

    def reduce(self, step: int, loss: StepLoss) -> StepLoss:
        """Wait until all buckets are summed; return the loss over all sites."""
        self._step = step
        exchange = self._send_loss(step, loss)
        with self._user.exposed():
            for bucket, finished in self._running:
                finished.result()
                bucket.finish()
            total = self._add_losses(exchange, loss)
        # The buckets of a step queue for the same link: one exchange, however many they are.
        reductions = [bucket.reduction for bucket, _ in self._running]
        if reductions:
            first, last = min(one.started for one in reductions), max(one.ended for one in reductions)
            self._user.transfer_seconds += last - first
        self._running.clear()
        self._user.rounds += 1
        return total

    def after_step(self, step: int, *, last: bool) -> None:
        """Keep the errors of compression, now that their step was taken; sometimes compare the sites' parameters.

        Raises:
            UserError: the parameters differ.
        """
        for bucket in self._reducing():
            bucket.reduction.commit()
        self._conclude(step, last)

    def discard(self, step: int, *, last: bool) -> None:
        """Forget the errors of compression of a step that was not taken."""
        for bucket in self._reducing():
            bucket.reduction.revert()
        self._conclude(step, last)

    def stop_after(self, step: int, wanted: bool) -> bool:
        return self._user.stop_after(self._engine, step, wanted)

    def ask_sites(self, message: bytes) -> list[bytes]:
        return self._user.broadcast(message)

    def slices(self) -> Iterator[tuple[str, Slice, Tensor]]:
        """Gradients are gone when a step has ended."""
        return iter(())

    def tokens_of_all_sites(self, loss: StepLoss) -> int:
        return loss.tokens

    def outer_parameters(self) -> AbstractContextManager[None]:
        return nullcontext()

    def report(self) -> dict[str, Any]:
        return self._user.report(self._engine)

    def close(self) -> None:
        self._couriers.close()

    def state_dict(self) -> dict[str, Any]:
        states = [bucket.reduction.state_dict() for bucket in self._reducing()]
        return {"rounds": self._user.rounds, "local": {"buckets": states}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state; without `local`, which belongs to a layout, the errors of compression begin at zero."""
        self._user.rounds = state["rounds"]
        if "local" in state:
            for bucket, saved in zip(self._reducing(), state["local"]["buckets"], strict=True):
                bucket.reduction.load_state_dict(saved)

    def _conclude(self, step: int, last: bool) -> None:
        if self._verify_every and (step % self._verify_every == 0 or last):
            self._user.compare(self._parameters(), f"after step {step}", self._engine)
        elif last:
            self._user.broadcast(b"")  # nobody leaves while something of its own is still on the way

    def _ready(self, bucket: GradientBucket) -> None:
        """Called from within the backward pass of step `self._step + 1`."""
        ours = self._buckets[bucket.index]
        if ours is None:
            return
        tag = (self._step + 1) * TAGS_PER_ROUND + 2 * bucket.index
        self._running.append((ours, ours.reduction.start(tag, partial(ours.prepare, bucket.wait))))

    def _send_loss(self, step: int, loss: StepLoss) -> Exchange:
        return send_to_all(self._lane, step * TAGS_PER_ROUND + _LOSS_TAG, _LOSS.pack(loss.loss_sum, loss.tokens))

    def _add_losses(self, exchange: Exchange, loss: StepLoss) -> StepLoss:
        arrived = exchange.wait()
        loss_sum, tokens = 0.0, 0
        for site in range(len(self._lane.names)):  # in the same order everywhere: rounding must not differ
            own = site == self._lane.site
            entry = (loss.loss_sum, loss.tokens) if own else _LOSS.unpack(arrived[site])
            loss_sum, tokens = loss_sum + entry[0], tokens + entry[1]
        return StepLoss(loss_sum, tokens)

    def _reducing(self) -> list[_Bucket]:
        return [bucket for bucket in self._buckets if bucket is not None]

    def _parameters(self) -> list[tuple[Any, Tensor]]:
        return [(entry.slice, entry.parameter) for entry in self._engine.owned()]
