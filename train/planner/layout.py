"""How a model is laid out over each site's accelerators, and how the sites stay one model: plain data."""

import math
from dataclasses import dataclass

from isthmus.errors import UserError
from isthmus.parallelism.config import default_bucket


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of one site (all sites have the same) and the batch of all.

    `recompute`: none, selective (attention's scores only; arXiv 2205.05198) or full. `attention`: flash (no scores in
    memory) or core (Megatron's own). `gradient_bytes`: 4 or 2, what gradients are kept and reduced in.
    `fused`: softmax, bias, dropout and activation are fused kernels, as in Megatron since 2021.
    `tensor_overlap`: share of tensor-parallel communication that kernels hide (0 without userbuffers).
    """

    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    virtual_pipeline: int = 1
    context: int = 1
    expert: int = 1
    data: int = 1
    global_batch: int = 8
    micro_batch: int = 1
    sequence_length: int = 2048
    precision: str = "bf16"
    recompute: str = "none"
    attention: str = "flash"
    distributed_optimizer: bool = True
    gradient_bytes: int = 4
    overlap: bool = True
    bucket_params: int | None = None
    fused: bool = True
    tensor_overlap: float = 0.0

    @property
    def ranks(self) -> int:
        """Ranks of one site."""
        return self.tensor * self.pipeline * self.context * self.data

    def buckets(self, params: float) -> int:
        """Return how many gradient buckets the parameters of a rank make, by the engine's rule where none is given."""
        return max(1, math.ceil(params / (self.bucket_params or default_bucket(int(params)))))

    def microbatches(self, sites: int) -> int:
        """Return microbatches per step and pipeline.

        Raises:
            UserError: the batch does not divide.
        """
        per_pass = self.micro_batch * self.data * sites
        if self.global_batch % per_pass or self.global_batch < per_pass:
            nearest = max(1, round(self.global_batch / per_pass)) * per_pass
            raise UserError(
                f"micro_batch {self.micro_batch} x data {self.data} x {sites} site{'s' * (sites > 1)} = {per_pass} "
                "does not divide it",
                where=f"train.global_batch={self.global_batch}",
                fix=f"the nearest that works is {nearest}",
            )
        return self.global_batch // per_pass


@dataclass(frozen=True, kw_only=True)
class Sync:
    """What crosses the links: sync=none, exact or local, as in parallelism/sites/config.py."""

    kind: str = "none"
    wire: str = "fp32"
    every: int = 1
    fragments: int = 1
    overlap_steps: int = 0
    density: float = 0.02

    @property
    def bits(self) -> float:
        """Return bits per number on the wire, scales and places included (parallelism/sites/wire.py)."""
        if self.wire == "topk":
            kept = min(4096, 2 * -(-max(1, round(4096 * self.density)) // 2))
            return 8 * (2 * kept + 1.5 * kept) / 4096
        return {"fp32": 32.0, "bf16": 16.0, "int8": 8.125, "int4": 4.125}[self.wire]

    def describe(self) -> str:
        if self.kind == "none":
            return "none"
        if self.kind == "exact":
            return f"exact {self.wire}"
        return f"local H{self.every} P{self.fragments} tau{self.overlap_steps} {self.wire}"
