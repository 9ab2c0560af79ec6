"""How numbers and small state are named inside a checkpoint, whatever the topology that wrote them."""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """A flat range of a box of a global tensor.

    Attributes:
        kind: what the numbers are: parameter, exp_avg, exp_avg_sq, outer, outer_momentum, delta.
        name: global parameter name.
        global_shape: of the whole tensor.
        offset: where the box begins in it, one number per dim.
        shape: of the box.
        start, stop: the range of the flattened box.
    """

    kind: str
    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def key(self) -> str:
        box = "x".join(f"{first}+{size}" for first, size in zip(self.offset, self.shape, strict=True))
        return f"{self.kind}/{self.name}[{box}][{self.start}:{self.stop}]"

    @property
    def numel(self) -> int:
        return self.stop - self.start

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """Read what `to_json` returned.

        Raises:
            ValueError: it describes no range of a box inside a tensor.
        """
        shapes = {name: tuple(int(size) for size in value[name]) for name in ("global_shape", "offset", "shape")}
        record = cls(
            kind=str(value["kind"]),
            name=str(value["name"]),
            start=int(value["start"]),
            stop=int(value["stop"]),
            **shapes,
        )
        same_dims = len({len(shape) for shape in shapes.values()}) == 1
        inside = same_dims and all(
            first >= 0 and size > 0 and first + size <= whole
            for first, size, whole in zip(record.offset, record.shape, record.global_shape, strict=True)
        )
        if not inside or not 0 <= record.start < record.stop <= math.prod(record.shape):
            raise ValueError(f"{record.name}: {value} lies outside of its tensor")
        return record


_STEP_FOLDER = re.compile(r"step-(\d{10,})-a(\d{4,})")


def folder_name(step: int, attempt: int) -> str:
    """Return the name of a checkpoint's folder: an attempt saves a step once, so no name is used twice."""
    return f"step-{step:010d}-a{attempt:04d}"


def parse_folder_name(name: str) -> tuple[int, int] | None:
    """Return (step, attempt) of a checkpoint's folder, or None for another name."""
    match = _STEP_FOLDER.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def any_attempt(name: str) -> int:
    """Return the attempt in the name of a folder, also of one that was set aside; 0 where there is none."""
    match = _STEP_FOLDER.search(name)
    return int(match[2]) if match else 0


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def vote_file(rank: int) -> str:
    return f"rank-{rank:05d}.json"


MANIFEST = "manifest.json"
