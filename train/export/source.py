"""The model in a checkpoint of ours, read parameter by parameter."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import UserError
from isthmus.fault_tolerance.manifest import Broken, Manifest, check_hashes
from isthmus.fault_tolerance.reader import Reader
from isthmus.fault_tolerance.records import Record
from isthmus.fault_tolerance.store import Found
from isthmus.parallelism.config import ModelConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GROUP_BYTES = 1 << 30  # of fp32 numbers that are put together in one pass over the files


@dataclass(frozen=True)
class Source:
    """A whole checkpoint.

    Attributes:
        kind: of the records that are the model: with local sync the outer parameters, as evaluation takes them.
        shapes: of the global parameters, by name.
    """

    folder: Path
    manifest: Manifest
    model: ModelConfig
    kind: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def sequence_length(self) -> int:
        return int(self.manifest.config["train.sequence_length"])

    @property
    def precision(self) -> str:
        """That of the model in training; of fp8, that in which its parameters are kept."""
        return "fp32" if self.manifest.config["train.precision"] == "fp32" else "bf16"

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole parameter in fp32) in order, holding about a gigabyte at a time.

        Raises:
            UserError: the checkpoint does not hold all of it.
        """
        group: dict[str, Tensor] = {}
        for name in names:
            group[name] = torch.empty(self.shapes[name], dtype=torch.float32)
            if 4 * sum(tensor.numel() for tensor in group.values()) >= _GROUP_BYTES:
                yield from self._fill(group).items()
                group = {}
        yield from self._fill(group).items()

    def _fill(self, group: dict[str, Tensor]) -> dict[str, Tensor]:
        targets = []
        for name, tensor in group.items():
            shape = self.shapes[name]
            whole = Record(self.kind, name, shape, (0,) * len(shape), shape, 0, math.prod(shape))
            targets.append((whole, tensor.view(-1)))
        try:
            Reader(self.folder, self.manifest).fill(targets, near=0)
        except Broken as error:
            raise UserError(str(error), where=str(self.folder), fix="choose another checkpoint") from None
        return group


def open_source(found: Found, done: Callable[[int], None], *, rank: int = 0, ranks: int = 1) -> Source:
    """Open a whole checkpoint, after comparing the hash of every byte of it.

    Args:
        done: told the number of bytes that were read.
        rank, ranks: of the processes that share the check.

    Raises:
        UserError: it is damaged.
    """
    assert found.manifest is not None
    manifest = found.manifest
    try:
        check_hashes(found.folder, manifest, range(rank, manifest.ranks, ranks), done)
        reader = Reader(found.folder, manifest)
        shapes = reader.shapes()
    except Broken as error:
        raise UserError(f"is broken: {error}", where=str(found.folder), fix="choose another checkpoint") from None
    kind = "outer" if shapes.get("outer") else "parameter"
    return Source(found.folder, manifest, _model_of(manifest.config), kind, dict(sorted(shapes[kind].items())))


def _model_of(config: dict[str, Any]) -> ModelConfig:
    """Read the model's keys; those that a later version has brought keep their defaults, as in the run itself."""
    known = {field.name for field in fields(ModelConfig)}
    values = {name.removeprefix("model."): value for name, value in config.items() if name.startswith("model.")}
    return ModelConfig(**{name: value for name, value in values.items() if name in known})
