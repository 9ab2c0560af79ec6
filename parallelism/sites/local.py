"""Local sync: sites train on their own and send, in turn, how far each fragment of the model has moved.

With H inner steps between two rounds of a fragment (arXiv 2501.18512, algorithm 2, and 2311.08105, algorithm 1):

    at its step t        delta   = outer - inner                     of each site, of this rank's fp32 slices only
    over the link        mean    = the mean of delta over the sites
    at step t + tau      m       = momentum m + mean
                         outer   = outer - lr (mean + momentum m)    Nesterov, as in torch.optim.SGD
                         inner   = merge inner + (1 - merge) outer

Outer parameters and momentum are kept by the rank that owns the slice, like the inner optimizer's state.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.engine import Engine, OwnedSlice, StepLoss
from isthmus.parallelism.sites.allreduce import AllReduce, Couriers
from isthmus.parallelism.sites.blocks import BlockLayout
from isthmus.parallelism.sites.fragments import due_fragment, fragment_of
from isthmus.parallelism.sites.lane import Lane
from isthmus.parallelism.sites.sync import TAGS_PER_ROUND, LaneUser
from isthmus.parallelism.sites.wire import Codec
from isthmus.parallelism.slices import Slice


@dataclass(frozen=True, kw_only=True)
class OuterRule:
    """H, P, tau, alpha and the outer optimizer."""

    every: int
    fragments: int
    overlap_steps: int
    merge: float
    learning_rate: float
    momentum: float


@dataclass
class _Fragment:
    """This rank's part of one fragment, slice by slice; `inner` are the engine's own main parameters."""

    owned: list[OwnedSlice]
    inner: list[Tensor]
    outer: list[Tensor]
    momentum: list[Tensor]
    layout: BlockLayout
    reduction: AllReduce
    finished: "Future[bool] | None" = None
    delta: list[Tensor] = field(default_factory=list)


class LocalSync:
    """Averages parameters over sites, a fragment at a time.

    Args:
        lane: to the ranks of the same number in the other sites.
        codec: how pseudo-gradients are written; a lossy one gets error feedback with `error_decay`.
        verify_every: rounds between comparisons of the outer parameters; 0 for never.
        threads: of each tensor operation of the couriers.
    """

    def __init__(
        self,
        lane: Lane,
        codec: Codec,
        rule: OuterRule,
        model: ModelConfig,
        *,
        error_decay: float,
        verify_every: int,
        threads: int,
    ) -> None:
        self._user = LaneUser(lane)
        self._lane, self._codec, self.rule, self._model = lane, codec, rule, model
        self._decay, self._verify_every = error_decay, verify_every
        self._couriers = Couriers(threads)
        self._fragments: list[_Fragment | None] = []
        self._under_way: dict[int, int] = {}  # number of a fragment -> step after which it was sent, on every rank
        self._restored = False
        self.failed_rounds = 0  # rounds that no site applied, because a number was not finite

    def attach(self, engine: Engine) -> None:
        """Take the parameters as they are for the outer ones."""
        self._engine = engine
        owned = list(engine.owned())
        count = self.rule.fragments
        for number in range(count):
            mine = [entry for entry in owned if fragment_of(entry.slice.name, self._model, count) == number]
            # With many pipeline stages or data ranks, a rank may own nothing of a fragment, in every site alike.
            self._fragments.append(self._fragment(mine) if mine else None)

    def begin(self, step: int) -> None:
        """Prove that all sites start from the same step and the same outer parameters.

        Raises:
            UserError: they do not.
        """
        if not self._restored:
            for fragment in self._present():
                torch._foreach_copy_(fragment.outer, fragment.inner)
        self._user.begin(step, self._engine)
        self._user.compare(self._outer_state(), f"at the start, after step {step}", self._engine)
        # What was under way when a checkpoint was saved leaves again, the same bytes under the same number.
        for number, sent_at in sorted(self._under_way.items(), key=lambda entry: entry[1]):
            if (mine := self._fragments[number]) is not None:
                self._launch(mine, number, sent_at)

    def reduce(self, step: int, loss: StepLoss) -> StepLoss:
        """Gradients stay inside the site."""
        return loss

    def after_step(self, step: int, *, last: bool) -> None:
        """Send what is due, apply what has had its time; at the last step, apply everything that is under way.

        Raises:
            LaneError: another site cannot be reached.
            UserError: the sites' outer parameters differ.
        """
        number = due_fragment(step, self.rule.every, self.rule.fragments)
        if number is not None:
            self._under_way[number] = step
            if (fragment := self._fragments[number]) is not None:
                self._send(fragment, number, step)
            self._user.rounds += 1
        arrived = [n for n, sent_at in self._under_way.items() if last or step >= sent_at + self.rule.overlap_steps]
        if arrived:
            self._receive(arrived)
        verify = number is not None and self._verify_every and self._user.rounds % self._verify_every == 0
        if verify or (last and self._verify_every):
            self._user.compare(self._outer_state(), f"after round {self._user.rounds}, step {step}", self._engine)
        elif last:
            self._user.broadcast(b"")  # nobody leaves while another may still ask it for something

    def discard(self, step: int, *, last: bool) -> None:
        """A site that skips a batch takes no inner step; the rounds go on by the number of the step."""
        self.after_step(step, last=last)

    def tokens_of_all_sites(self, loss: StepLoss) -> int:
        """Every site reads the same share of the batch; masks that differ are not counted over the link."""
        return loss.tokens * len(self._lane.names)

    @contextmanager
    def outer_parameters(self) -> Iterator[None]:
        """Within: the model has the outer parameters, which are what is evaluated and exported."""
        inner = [[view.clone() for view in fragment.inner] for fragment in self._present()]
        for fragment in self._present():
            torch._foreach_copy_(fragment.inner, fragment.outer)
        self._engine.publish_parameters()
        try:
            yield
        finally:
            for fragment, saved in zip(self._present(), inner, strict=True):
                torch._foreach_copy_(fragment.inner, saved)
            self._engine.publish_parameters()

    def stop_after(self, step: int, wanted: bool) -> bool:
        return self._user.stop_after(self._engine, step, wanted)

    def report(self) -> dict[str, Any]:
        return {**self._user.report(self._engine), "rounds_refused": self.failed_rounds}

    def settle(self) -> None:
        """Wait until what is under way has arrived; it is applied in its time."""
        for fragment in self._present():
            if fragment.finished is not None:
                fragment.finished.result()

    def close(self) -> None:
        self._couriers.close()

    def ask_sites(self, message: bytes) -> list[bytes]:
        return self._user.broadcast(message)

    def slices(self) -> Iterator[tuple[str, Slice, Tensor]]:
        """Yield (kind, address, flat view) of what a checkpoint must hold: outer parameters, momentum, and the deltas
        of the rounds that are under way. After `load_state_dict` the views are there to be filled.
        """
        for number, fragment in enumerate(self._fragments):
            if fragment is None:
                continue
            kinds = {"outer": fragment.outer, "outer_momentum": fragment.momentum}
            if number in self._under_way:
                kinds["delta"] = fragment.delta
            for kind, tensors in kinds.items():
                for entry, tensor in zip(fragment.owned, tensors, strict=True):
                    yield kind, entry.slice, tensor

    def state_dict(self) -> dict[str, Any]:
        """Return what has no address: numbers of rounds, when each round under way was sent, the errors of compression.

        A round that is under way has not touched the errors yet: sent again, it gives the same bytes.
        """
        errors = [None if fragment is None else fragment.reduction.state_dict() for fragment in self._fragments]
        return {
            "rounds": self._user.rounds,
            "failed_rounds": self.failed_rounds,
            "under_way": [[number, sent_at] for number, sent_at in self._under_way.items()],
            "local": {"errors": errors},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state; without `local`, which belongs to a layout, the errors of compression begin at zero."""
        self._restored = True
        self._user.rounds, self.failed_rounds = state["rounds"], state["failed_rounds"]
        self._under_way = {int(number): int(sent_at) for number, sent_at in state["under_way"]}
        if "local" in state:
            for fragment, saved in zip(self._fragments, state["local"]["errors"], strict=True):
                if fragment is not None:
                    fragment.reduction.load_state_dict(saved)

    def _fragment(self, owned: list[OwnedSlice]) -> _Fragment:
        inner = [entry.parameter for entry in owned]
        layout = BlockLayout([entry.slice.numel for entry in owned], self._codec.block)
        reduction = AllReduce(self._lane, self._couriers, self._codec, layout, inner[0].device, decay=self._decay)
        return _Fragment(
            owned=owned,
            inner=inner,
            outer=[view.clone() for view in inner],
            momentum=[torch.zeros_like(view) for view in inner],
            layout=layout,
            reduction=reduction,
            delta=[torch.empty_like(view) for view in inner],
        )

    def _present(self) -> list[_Fragment]:
        return [fragment for fragment in self._fragments if fragment is not None]

    @torch.no_grad()
    def _send(self, fragment: _Fragment, number: int, step: int) -> None:
        assert fragment.finished is None, "a fragment leaves only after it was applied: tau < H"
        torch._foreach_copy_(fragment.delta, fragment.outer)
        torch._foreach_sub_(fragment.delta, fragment.inner)
        self._launch(fragment, number, step)

    def _launch(self, fragment: _Fragment, number: int, step: int) -> None:
        tag = step * TAGS_PER_ROUND + 2 * number
        fragment.finished = fragment.reduction.start(
            tag, lambda: fragment.layout.pack(fragment.delta, fragment.reduction.values_NB)
        )

    def _receive(self, numbers: list[int]) -> None:
        """Apply these fragments, on all ranks or on none."""
        for number in numbers:
            del self._under_way[number]
        due = [fragment for number in numbers if (fragment := self._fragments[number]) is not None]
        finite = True
        for fragment in due:
            assert fragment.finished is not None
            with self._user.exposed():
                finite &= fragment.finished.result()
            self._user.transfer_seconds += fragment.reduction.ended - fragment.reduction.started
            fragment.finished = None
        # Each rank knows of its own lane only. What one lane refuses, every site refuses on every lane.
        if self._engine.any_rank(not finite):
            self.failed_rounds += 1
            for fragment in due:
                fragment.reduction.revert()
            return
        for fragment in due:
            self._apply(fragment)
        # Ranks that own nothing of a fragment must join in publishing it.
        self._engine.publish_parameters()

    @torch.no_grad()
    def _apply(self, fragment: _Fragment) -> None:
        fragment.reduction.commit()
        fragment.layout.unpack(fragment.reduction.values_NB, fragment.delta)
        torch._foreach_div_(fragment.delta, float(len(self._lane.names)))
        momentum, rate = self.rule.momentum, self.rule.learning_rate
        if momentum:
            torch._foreach_mul_(fragment.momentum, momentum)
            torch._foreach_add_(fragment.momentum, fragment.delta)
            torch._foreach_add_(fragment.delta, fragment.momentum, alpha=momentum)
        torch._foreach_add_(fragment.outer, fragment.delta, alpha=-rate)
        # torch._foreach_lerp_ would round outer - inner where merge is 0: a site must then hold the outer bits.
        if self.rule.merge:
            torch._foreach_lerp_(fragment.inner, fragment.outer, 1.0 - self.rule.merge)
        else:
            torch._foreach_copy_(fragment.inner, fragment.outer)

    def _outer_state(self) -> list[tuple[Any, Tensor]]:
        return [
            (entry.slice, values)
            for fragment in self._present()
            for tensors in (fragment.outer, fragment.momentum)
            for entry, values in zip(fragment.owned, tensors, strict=True)
        ]
