"""Numbers out of a checkpoint for any topology: each slice is put together from whatever files hold parts of it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isthmus.fault_tolerance.manifest import Broken, Manifest
from isthmus.fault_tolerance.records import Record, rank_file
from isthmus.fault_tolerance.snapshot import METADATA
from isthmus.fault_tolerance.state import join_state


class Reader:
    """Reads one checkpoint, one rank's file at a time, and no more files than it needs."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    def state(self, rank: int) -> dict[str, Any]:
        """Return the small state that a rank saved.

        Raises:
            Broken: its file cannot be understood.
        """
        with _opened(self.folder / rank_file(rank)) as file:
            index = _index(file)
            names = [name for name in file.keys() if name not in index["records"]]  # noqa: SIM118
            joined = join_state(index["state"], {name: file.get_tensor(name) for name in names})
        assert isinstance(joined, dict)
        return joined

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Return the global shapes of all that was saved, by kind and name; the headers of all files are read.

        Raises:
            Broken: a file cannot be understood.
        """
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for rank in range(self.manifest.ranks):
            with _opened(self.folder / rank_file(rank)) as file:
                try:
                    records = [Record.from_json(described) for described in _index(file)["records"].values()]
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise Broken(f"{rank_file(rank)} has no index ({type(error).__name__})") from None
                for record in records:
                    found.setdefault(record.kind, {})[record.name] = record.global_shape
        return found

    @torch.no_grad()
    def fill(self, targets: Sequence[tuple[Record, Tensor]], *, near: int) -> None:
        """Fill flat tensors with the numbers of their records.

        Args:
            near: the rank whose file is looked at first, then its neighbours'.

        Raises:
            Broken: some number is in no file.
        """
        pending: dict[tuple[str, str], list[_Target]] = {}
        for record, tensor in targets:
            pending.setdefault((record.kind, record.name), []).append(_Target(record, tensor))
        for rank in sorted(range(self.manifest.ranks), key=lambda rank: (abs(rank - near), rank)):
            if not pending:
                return
            with _opened(self.folder / rank_file(rank)) as file:
                self._fill_from(file, pending)
        if pending:
            kind, name = next(iter(pending))
            raise Broken(f"no file holds all of {kind} of {name}")

    @staticmethod
    def _fill_from(file: Any, pending: dict[tuple[str, str], list["_Target"]]) -> None:
        for key, described in _index(file)["records"].items():
            wanted = pending.get((described["kind"], described["name"]), [])
            source = Record.from_json(described)
            if not any(target.overlaps(source) for target in wanted):
                continue
            values = file.get_tensor(key).view(-1)
            if len(values) != source.numel:
                raise Broken(f"{key} has {len(values)} numbers")
            for target in wanted:
                target.take(source, values)
            left = [target for target in wanted if not target.complete]
            if left:
                pending[source.kind, source.name] = left
            else:
                del pending[source.kind, source.name]


class _Target:
    """A slice that is being put together."""

    def __init__(self, record: Record, tensor: Tensor) -> None:
        assert tensor.numel() == record.numel
        self.record, self._tensor = record, tensor.view(-1)
        self._covered: Tensor | None = None
        self.complete = False

    def overlaps(self, source: Record) -> bool:
        """Whether the boxes meet (their ranges may still not)."""
        ours = self.record
        if ours.global_shape != source.global_shape:
            raise Broken(f"{ours.name} is {source.global_shape} there and {ours.global_shape} here")
        return all(
            max(a, b) < min(a + m, b + n)
            for a, m, b, n in zip(ours.offset, ours.shape, source.offset, source.shape, strict=True)
        )

    def take(self, source: Record, values: Tensor) -> None:
        """Copy what the source has of this slice."""
        ours = self.record
        if (ours.offset, ours.shape) == (source.offset, source.shape):
            first, last = max(ours.start, source.start), min(ours.stop, source.stop)
            if first < last:
                here = slice(first - ours.start, last - ours.start)
                self._tensor[here] = values[first - source.start : last - source.start].to(self._tensor)
                self._mark(here)
        elif self.overlaps(source):
            self._take_across(source, values)

    def _take_across(self, source: Record, values: Tensor) -> None:
        """Copy between boxes of different shape: both are laid out in full, with a mask of what is there."""
        ours = self.record
        box = [
            (max(a, b), min(a + m, b + n))
            for a, m, b, n in zip(ours.offset, ours.shape, source.offset, source.shape, strict=True)
        ]
        inside_source = tuple(
            slice(first - at, last - at) for (first, last), at in zip(box, source.offset, strict=True)
        )
        inside_ours = tuple(slice(first - at, last - at) for (first, last), at in zip(box, ours.offset, strict=True))
        there = torch.zeros(math.prod(source.shape), dtype=values.dtype)
        known = torch.zeros(math.prod(source.shape), dtype=torch.bool)
        there[source.start : source.stop] = values
        known[source.start : source.stop] = True
        flat = torch.arange(math.prod(ours.shape)).view(ours.shape)[inside_ours].reshape(-1)
        usable = known.view(source.shape)[inside_source].reshape(-1) & (flat >= ours.start) & (flat < ours.stop)
        places = flat[usable] - ours.start
        taken = there.view(source.shape)[inside_source].reshape(-1)[usable]
        self._tensor[places.to(self._tensor.device)] = taken.to(self._tensor)
        self._mark(places)

    def _mark(self, places: "slice | Tensor") -> None:
        if isinstance(places, slice) and places == slice(0, self.record.numel):
            self.complete = True
            return
        if self._covered is None:
            self._covered = torch.zeros(self.record.numel, dtype=torch.bool)
        self._covered[places] = True
        if bool(self._covered.all()):
            self.complete, self._covered = True, None


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise Broken(f"{path.name} cannot be read: {error}") from None


def _index(file: Any) -> Any:
    try:
        return json.loads(file.metadata()[METADATA])
    except (TypeError, KeyError, ValueError) as error:
        raise Broken(f"it has no index ({type(error).__name__})") from None
