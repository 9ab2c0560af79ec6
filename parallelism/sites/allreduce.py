"""The sum over sites of one stretch of numbers, encoded, the same bits in every site.

Two sites send each other everything. From three sites on each owns a part: it gets that part from all, adds, encodes
the sum with its own error feedback, and sends it to all (reduce-scatter, re-encode, all-gather). Everybody adds in the
order of the sites, and uses what was decoded, also of its own: so that no bit can differ.

A stretch that is not finite crosses as a flag without numbers; the sum is then NaN everywhere.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Buffer

from isthmus.parallelism.sites.blocks import BlockLayout
from isthmus.parallelism.sites.feedback import ErrorFeedback
from isthmus.parallelism.sites.lane import Exchange, Lane, peers_of
from isthmus.parallelism.sites.wire import Codec

_FINITE = 0
_REFUSAL = bytes([1])  # the message of a stretch that is not finite


class Couriers:
    """Three threads, a stage each: encode and scatter; reduce and gather; decode. Each works first in, first out.

    Training goes on beside them; a stage that waits for the link holds up no other stage.
    """

    def __init__(self, threads: int) -> None:
        # A new thread would bring a full set of threads of its own to each tensor operation.
        stages = [
            ThreadPoolExecutor(
                1, thread_name_prefix=f"isthmus-{name}", initializer=torch.set_num_threads, initargs=(threads,)
            )
            for name in ("scatter", "reduce", "gather")
        ]
        self.scatter, self.reduce, self.gather = stages
        self._stream: torch.cuda.Stream | None = None

    def beside(self, device: torch.device) -> AbstractContextManager[Any]:
        """Within: work on a GPU goes to a stream of the couriers' own, beside training."""
        if device.type != "cuda":
            return nullcontext()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        return torch.cuda.stream(self._stream)

    def close(self) -> None:
        for stage in (self.scatter, self.reduce, self.gather):
            stage.shutdown(wait=False, cancel_futures=True)


class AllReduce:
    """Sums one stretch of N blocks over the sites, again and again; one round of it is in flight at a time.

    Args:
        layout: of the N blocks, the same in every site; each takes its range of them from three sites on.
        decay: of the error feedback.

    Attributes:
        values_NB: where the numbers to send are taken from, and where their sum is put.
    """

    def __init__(
        self,
        lane: Lane,
        couriers: Couriers,
        codec: Codec,
        layout: BlockLayout,
        device: torch.device,
        *,
        decay: float,
    ) -> None:
        self.values_NB = values_NB = layout.buffer(device)
        self._lane, self._couriers, self._codec = lane, couriers, codec
        self._sites = len(lane.names)
        self._parts = parts = layout.split(self._sites)
        # What is sent to whom: everything to the one other site, or to each site its part.
        self._segments = parts if self._sites > 2 else [(0, layout.blocks)]
        self._feedback = [ErrorFeedback(codec, last - first, device, decay) for first, last in self._segments]
        first, last = parts[lane.site]
        if self._sites > 2:
            self._feedback.append(ErrorFeedback(codec, last - first, device, decay))  # of the owner's sum
        self._outboxes = [
            _Outbox(codec.payload_bytes(stop - start), pinned=values_NB.is_cuda)
            for start, stop in [*self._segments, *([(first, last)] if self._sites > 2 else [])]
        ]
        # What the others decode of ours, and room to decode what is theirs.
        self._own_NB = torch.zeros_like(values_NB)
        self._scratch_NB = torch.zeros_like(values_NB if self._sites == 2 else values_NB[first:last])
        self.started = self.ended = 0.0  # perf_counter at the last round's `start`, and when its sum was there

    def start(self, tag: int, prepare: Callable[[], None]) -> "Future[bool]":
        """Begin a round; the future's result says whether the sum is finite, and `values_NB` then holds it.

        Args:
            tag: number of the round, the same in every site and used once; the next number must be free too.
            prepare: fills `values_NB`; called in the first courier, where it may wait.
        """
        finished: Future[bool] = Future()
        self.started = time.perf_counter()
        if self.values_NB.is_cuda:
            # What training has queued so far comes first: it may still read the last sum, or write what is to be sent.
            queued = torch.cuda.current_stream(self.values_NB.device).record_event()
            fill = prepare

            def prepare() -> None:
                torch.cuda.current_stream(self.values_NB.device).wait_event(queued)
                fill()

        self._submit(self._couriers.scatter, finished, self._scatter, tag, prepare, finished)
        return finished

    def commit(self) -> None:
        """Keep the errors of the last round: it has been used."""
        for feedback in self._feedback:
            feedback.commit()

    def revert(self) -> None:
        """Forget the errors of the last round: it has not been used."""
        for feedback in self._feedback:
            feedback.revert()

    def state_dict(self) -> dict[str, Any]:
        return {"feedback": [feedback.state_dict() for feedback in self._feedback]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for feedback, saved in zip(self._feedback, state["feedback"], strict=True):
            feedback.load_state_dict(saved)

    def _submit(
        self, stage: ThreadPoolExecutor, finished: "Future[bool]", work: Callable[..., None], *args: Any
    ) -> None:
        def run() -> None:
            try:
                with torch.no_grad(), self._couriers.beside(self.values_NB.device):
                    work(*args)
            except BaseException as error:  # to whoever waits for the round
                finished.set_exception(error)

        stage.submit(run)

    def _scatter(self, tag: int, prepare: Callable[[], None], finished: "Future[bool]") -> None:
        prepare()
        finite = _is_finite(self.values_NB)
        payloads: dict[int, Buffer] = {}
        messages = [
            outbox.fill(feedback.encode(self.values_NB[first:last], self._own_NB[first:last])) if finite else _REFUSAL
            for outbox, feedback, (first, last) in zip(self._outboxes, self._feedback, self._segments, strict=False)
        ]
        for peer in peers_of(self._lane):
            payloads[peer] = messages[peer] if self._sites > 2 else messages[0]
        exchange = self._lane.exchange(tag, payloads)
        self._submit(self._couriers.reduce, finished, self._reduce, tag, exchange, finite, finished)

    def _reduce(self, tag: int, exchange: Exchange, finite: bool, finished: "Future[bool]") -> None:
        arrived = exchange.wait()
        finite = finite and _all_finite(arrived)
        if self._sites == 2:
            if finite:
                self._add(arrived, self.values_NB, self._own_NB)
            self._finish(finished, finite and _is_finite(self.values_NB))
            return
        first, last = self._parts[self._lane.site]
        message: Buffer = _REFUSAL
        if finite:
            total_NB = self.values_NB[first:last]
            self._add(arrived, total_NB, self._own_NB[first:last])
            finite = _is_finite(total_NB)  # finite numbers may have an infinite sum
        if finite:
            payload = self._feedback[-1].encode(total_NB, self._scratch_NB)
            finite = _is_finite(self._scratch_NB)  # and rounding may make it so
            message = self._outboxes[-1].fill(payload) if finite else _REFUSAL
            total_NB.copy_(self._scratch_NB)
        exchange = self._lane.exchange(tag + 1, dict.fromkeys(arrived, message))
        self._submit(self._couriers.gather, finished, self._gather, exchange, finite, finished)

    def _add(self, arrived: dict[int, memoryview], out_NB: Tensor, own_NB: Tensor) -> None:
        """Add all sites' numbers in the order of the sites."""
        for site in range(self._sites):
            if site == self._lane.site:
                source = own_NB
            else:
                source = self._scratch_NB
                self._codec.decode(_tensor(arrived[site], out_NB.device), source)
            if site == 0:
                out_NB.copy_(source)
            else:
                out_NB.add_(source)

    def _gather(self, exchange: Exchange, finite: bool, finished: "Future[bool]") -> None:
        arrived = exchange.wait()
        finite = finite and _all_finite(arrived)
        if finite:
            for site, message in arrived.items():
                first, last = self._parts[site]
                self._codec.decode(_tensor(message, self.values_NB.device), self.values_NB[first:last])
        self._finish(finished, finite)

    def _finish(self, finished: "Future[bool]", finite: bool) -> None:
        if not finite:
            self.values_NB.fill_(torch.nan)
        if self.values_NB.is_cuda:
            torch.cuda.current_stream(self.values_NB.device).synchronize()
        self.ended = time.perf_counter()
        finished.set_result(finite)


def _is_finite(values: Tensor) -> bool:
    """A sum over numbers is finite unless one of them is not, or it overflows; only then is a closer look needed."""
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


class _Outbox:
    """Memory of one message, used again in every round: fresh memory costs more in page faults than in copying."""

    def __init__(self, payload_bytes: int, *, pinned: bool) -> None:
        self._message = torch.empty(payload_bytes + 1, dtype=torch.uint8, pin_memory=pinned)
        # The flag comes last, so that numbers keep the alignment that they are read with.
        self._message[-1] = _FINITE

    def fill(self, payload: Tensor) -> Buffer:
        self._message[:-1].copy_(payload)
        return self._message.numpy().data


def _all_finite(messages: dict[int, memoryview]) -> bool:
    return all(message[-1] == _FINITE for message in messages.values())


def _tensor(message: memoryview, device: torch.device) -> Tensor:
    return torch.frombuffer(message, dtype=torch.uint8)[:-1].to(device)
