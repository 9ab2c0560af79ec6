"""Small state, such as counters and random generators, as JSON and named tensors: nothing that could run code."""

from typing import Any

from torch import Tensor

_TENSOR = "$tensor"


def split_state(state: Any, prefix: str = "state") -> tuple[Any, dict[str, Tensor]]:
    """Separate the tensors of a tree of dicts and lists from the rest, which is then plain JSON.

    Raises:
        TypeError: a value that JSON does not know.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach()
            return {_TENSOR: path}
        if isinstance(value, dict):
            assert all(isinstance(name, str) for name in value), f"{path}: keys of state are strings"
            return {name: visit(entry, f"{path}/{name}") for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [visit(entry, f"{path}/{index}") for index, entry in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{path} is a {type(value).__name__}: a checkpoint holds tensors and plain values")

    return visit(state, prefix), tensors


def join_state(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `split_state`."""
    if isinstance(plain, dict):
        if set(plain) == {_TENSOR}:
            return tensors[plain[_TENSOR]]
        return {name: join_state(entry, tensors) for name, entry in plain.items()}
    return [join_state(entry, tensors) for entry in plain] if isinstance(plain, list) else plain
