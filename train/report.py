"""What the loop tells metrics and progress about."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class StepReport:
    """One finished step, as metrics and progress see it.

    Tokens count all sites, the loss those whose gradients made the step; `wan` is what crossed the links since the last
    report; `reduction_seconds` is the wait for gradients of this site, inside `step_seconds`. Times are this rank's.
    """

    step: int
    tokens: int
    loss: float
    learning_rate: float
    grad_norm: float
    step_tokens: int
    step_seconds: float
    skipped: bool
    mix: dict[str, int]
    reduction_seconds: float = 0.0
    wan: dict[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    """Told about steps and evaluations; must not change the run."""

    def step(self, report: StepReport, held_out: dict[str, float] | None) -> None: ...

    def start(self, step: int, tokens: int, held_out: dict[str, float] | None) -> None: ...

    def slowest_rank(self) -> str:
        """Return a line about the slowest rank of the attempt, or ""; all ranks of the site call it together."""
        ...
