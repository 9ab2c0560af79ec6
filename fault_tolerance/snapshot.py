"""A rank's part of a checkpoint as it will stand in its file, kept in memory that a writer process shares.

The file is safetensors (a length, a JSON header, the numbers): no pickle, and any safetensors reader can open it. The
header's metadata holds the index by slice and the small state.
"""

import json
import mmap
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from isthmus.fault_tolerance.records import Record
from isthmus.fault_tolerance.state import split_state

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
METADATA = "isthmus"


class Snapshot:
    """Memory for one save, used again by the next; another process maps it by `descriptor`."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("isthmus-snapshot")
        self.bytes = 0
        self._mapping: mmap.mmap | None = None
        self._memory = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def fill(self, records: Iterable[tuple[Record, Tensor]], state: dict[str, Any]) -> None:
        """Copy flat tensors and state; they may change as soon as this returns.

        Raises:
            MemoryError: there is no memory for the copy.
        """
        plain, small = split_state(state)
        addressed = list(records)
        tensors = {record.key: tensor.detach() for record, tensor in addressed}
        assert len(tensors) == len(addressed), "a slice is saved twice"
        # Numbers of four bytes first: what follows may have any length.
        tensors |= small
        index = {"records": {record.key: record.to_json() for record, _ in addressed}, "state": plain}
        header, offsets = _layout(tensors, json.dumps(index))
        end = len(header) + (max(last for _, last in offsets.values()) if offsets else 0)
        self._reserve(end)
        self._memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        for name, tensor in tensors.items():
            first, last = offsets[name]
            if first < last:
                place = self._memory[len(header) + first : len(header) + last]
                place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        self.bytes = end

    def view(self) -> memoryview:
        """Return the bytes of the file."""
        assert self._mapping is not None
        return memoryview(self._mapping)[: self.bytes]

    def close(self) -> None:
        # The mapping goes when the last view of it does.
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._mapping = None
        os.close(self.descriptor)

    def _reserve(self, size: int) -> None:
        if self._mapping is not None and len(self._mapping) >= size:
            return
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._mapping = None
        # A little more, so that state of varying length seldom asks for new memory.
        size = -(-(size + size // 64) // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            os.ftruncate(self.descriptor, size)
            self._mapping = mmap.mmap(self.descriptor, size)
        except OSError as error:
            raise MemoryError(f"no {size} bytes for a checkpoint's snapshot: {error.strerror}") from None
        self._memory = torch.frombuffer(self._mapping, dtype=torch.uint8)


def _layout(tensors: dict[str, Tensor], index: str) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return the header of the file, its length first, and where each tensor stands behind it."""
    header: dict[str, Any] = {"__metadata__": {METADATA: index}}
    offsets: dict[str, tuple[int, int]] = {}
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda entry: -entry[1].element_size()):
        first, end = end, end + tensor.numel() * tensor.element_size()
        offsets[name] = (first, end)
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets
