"""The loop's injected parts: what each may do, and the default that does nothing."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Any, Protocol

from torch import Tensor

from isthmus.errors import UserError
from isthmus.parallelism.engine import Engine, Microbatch, StepLoss
from isthmus.parallelism.slices import Slice


class Stateful(Protocol):
    """Whatever a checkpoint must hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Loader(Stateful, Protocol):
    """Serves this data-parallel rank's part of one global batch after another."""

    def next_step(self) -> Sequence[Microbatch]: ...

    def mix(self) -> dict[str, int]: ...

    def skip_samples(self, ranges: Iterable[range]) -> None:
        """Leave samples out of the loss from now on; the state remembers them."""
        ...


class SiteSync(Stateful, Protocol):
    """The exchange between sites. `reduce` comes before the optimizer, `after_step` after it, `discard` instead."""

    def attach(self, engine: Engine) -> None:
        """Take up the engine, before a checkpoint is restored."""
        ...

    def begin(self, step: int) -> None:
        """Prove that all sites start from the same state, after a checkpoint was restored."""
        ...

    def reduce(self, step: int, loss: StepLoss) -> StepLoss:
        """Return the loss of all sites that took part in this step's gradients."""
        ...

    def after_step(self, step: int, *, last: bool) -> None: ...

    def discard(self, step: int, *, last: bool) -> None: ...

    def tokens_of_all_sites(self, loss: StepLoss) -> int:
        """Return the tokens that all sites trained on in a step for which `reduce` returned `loss`."""
        ...

    def stop_after(self, step: int, wanted: bool) -> bool:
        """Return whether all sites stop after this step; `wanted` is the wish of this one, on all its ranks."""
        ...

    def ask_sites(self, message: bytes) -> list[bytes]:
        """Send a short message on this rank's lane; return those of all sites, this one's included, in their order."""
        ...

    def slices(self) -> Iterator[tuple[str, Slice, Tensor]]:
        """Yield (kind, address, flat view) of the numbers of this rank that a checkpoint must hold."""
        ...

    def outer_parameters(self) -> AbstractContextManager[Any]:
        """Within: the model has the parameters that the sites share, which are what is evaluated."""
        ...

    def report(self) -> dict[str, Any]:
        """Return what crossed the links since the last report, under the names of metrics.jsonl."""
        ...


class Verdict(Enum):
    proceed = "proceed"
    skip = "skip"


class Guard(Stateful, Protocol):
    """Looks at every step before the optimizer does; called on every rank with the same numbers."""

    def inspect(self, step: int, loss: float, grad_norm: float) -> Verdict: ...

    def rewinding(self) -> bool:
        """Return whether the run is to go back behind this step, which all sites then agree on as on a stop."""
        ...


class Checkpointer(Protocol):
    """Saves and restores everything stateful."""

    def restore(self, parts: dict[str, Stateful]) -> None: ...

    def after_step(self, step: int, parts: dict[str, Stateful], *, last: bool) -> None: ...


class Ledger(Protocol):
    """Books every second to a cause."""

    def book(self, cause: str) -> AbstractContextManager[Any]: ...

    def close(self, status: str) -> None:
        """The attempt has ended, as outcome.json says."""
        ...


class _Stateless:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class NoSync(_Stateless):
    """One site alone."""

    def attach(self, engine: Engine) -> None:
        pass

    def begin(self, step: int) -> None:
        pass

    def reduce(self, step: int, loss: StepLoss) -> StepLoss:
        return loss

    def after_step(self, step: int, *, last: bool) -> None:
        pass

    def discard(self, step: int, *, last: bool) -> None:
        pass

    def tokens_of_all_sites(self, loss: StepLoss) -> int:
        return loss.tokens

    def stop_after(self, step: int, wanted: bool) -> bool:
        return wanted

    def ask_sites(self, message: bytes) -> list[bytes]:
        return [message]

    def slices(self) -> Iterator[tuple[str, Slice, Tensor]]:
        return iter(())

    def outer_parameters(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def report(self) -> dict[str, Any]:
        return {}


class FiniteGuard(_Stateless):
    """Ends the run at the first loss or gradient that is not a finite number, before it can reach the parameters."""

    def inspect(self, step: int, loss: float, grad_norm: float) -> Verdict:
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise UserError(
                    f"the {name} is {value}",
                    where=f"step {step}",
                    fix="lower optim.learning_rate, lengthen schedule.warmup_tokens or lower optim.clip_grad_norm",
                )
        return Verdict.proceed

    def rewinding(self) -> bool:
        return False


class NoCheckpointer:
    """Keeps nothing: every attempt starts at step 0."""

    def restore(self, parts: dict[str, Stateful]) -> None:
        pass

    def after_step(self, step: int, parts: dict[str, Stateful], *, last: bool) -> None:
        pass


class NoLedger:
    """Books nothing."""

    def book(self, cause: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def close(self, status: str) -> None:
        pass
