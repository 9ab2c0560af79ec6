"""Error feedback: what a lossy wire loses in one round is added to the next (Seide et al. 2014; arXiv 1901.09847)."""

from typing import Any

import torch
from torch import Tensor

from isthmus.parallelism.sites.wire import Codec


class ErrorFeedback:
    """Encodes v + decay e, and keeps what was lost as e once the round counts. A lossless codec needs no memory."""

    def __init__(self, codec: Codec, blocks: int, device: torch.device, decay: float) -> None:
        self._codec, self._decay = codec, decay
        self._needed = not codec.lossless and decay > 0 and blocks > 0
        shape = (blocks if self._needed else 0, codec.block)
        self.residual_NB = torch.zeros(shape, device=device)
        self._pending_NB = torch.zeros(shape, device=device)
        self._has_pending = False

    def encode(self, values_NB: Tensor, decoded_NB: Tensor) -> Tensor:
        """Return the payload, flat uint8, and write what its receivers will decode into `decoded_NB`.

        `values_NB` may hold other numbers afterwards.
        """
        if self._needed:
            values_NB.add_(self.residual_NB, alpha=self._decay)
        payload = self._codec.encode(values_NB)
        if self._codec.lossless:
            decoded_NB.copy_(values_NB)
        else:
            self._codec.decode(payload, decoded_NB)
        if self._needed:
            torch.sub(values_NB, decoded_NB, out=self._pending_NB)
            self._has_pending = True
        return payload

    def commit(self) -> None:
        """The round counts: keep its error."""
        if self._has_pending:
            self.residual_NB, self._pending_NB = self._pending_NB, self.residual_NB
            self._has_pending = False

    def revert(self) -> None:
        """The round does not count: the error is the one before it."""
        self._has_pending = False

    def state_dict(self) -> dict[str, Any]:
        return {"residual": self.residual_NB}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.residual_NB.copy_(state["residual"])
        self._has_pending = False
