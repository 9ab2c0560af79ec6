"""Frozen tests of a function: calls, and what they return. They are data, so they can be hashed and kept out of reach.

The expected values never enter the sandbox: a candidate is sent arguments, and what it returns is compared outside. So
it cannot read, change or skip the tests that accept it, nor claim to have passed them.
"""

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.errors import UserError

_NEAR = 1e-9  # relative, for floats where a test names no tolerance


@dataclass(frozen=True)
class Test:
    """One call; values are as `encode` gives them. `tolerance` is absolute, for floats."""

    __test__ = False  # for pytest

    arguments: Sequence[Any]
    expected: Any
    tolerance: float | None = None

    def to_json(self) -> list[Any]:
        return [list(self.arguments), self.expected, self.tolerance]


def encode(value: Any) -> Any:
    """Return a value as JSON that no other value gives: numbers and texts as they are, the rest with its type.

    Raises:
        ValueError: it is of a type that is not compared.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (list, tuple):
        entries = [encode(entry) for entry in value]
        return entries if kind is list else {"tuple": entries}
    if kind in (set, frozenset):
        return {"set": sorted((encode(entry) for entry in value), key=repr)}
    if kind is dict:
        return {"dict": [[encode(key), encode(entry)] for key, entry in value.items()]}
    raise ValueError(f"a {kind.__name__} cannot be compared")


def equal(found: Any, expected: Any, tolerance: float | None = None) -> bool:
    """Compare encoded values: same type and same value, floats to a tolerance, dictionaries in any order."""
    if type(expected) is float and type(found) in (float, int):
        try:
            return math.isclose(found, expected, rel_tol=0 if tolerance else _NEAR, abs_tol=tolerance or 1e-12)
        except OverflowError:  # an integer beyond every float
            return False
    if type(found) is not type(expected):
        return False
    if isinstance(expected, list):
        return len(found) == len(expected) and all(
            equal(one, other, tolerance) for one, other in zip(found, expected, strict=True)
        )
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return False
        (tag,) = expected
        one, other = found[tag], expected[tag]
        if tag == "dict":
            if not isinstance(one, list) or not all(isinstance(entry, list) and entry for entry in one):
                return False  # the candidate wrote it itself
            one, other = (sorted(entries, key=lambda entry: repr(entry[0])) for entries in (one, other))
        return equal(one, other, tolerance)
    return bool(found == expected)


def read_assertion(line: str, function: str, where: str) -> Test:
    """Read a test written as `assert f(1, [2]) == 3`, `assert f(x)`, `assert not f(x)` or `assert abs(f(x) - y) < z`.

    Raises:
        UserError: it is anything else; such a test would have to run where the candidate could change it.
    """
    try:
        statement = ast.parse(line.strip()).body[0]
        assert isinstance(statement, ast.Assert)
        return _of_condition(statement.test, function)
    except (SyntaxError, AssertionError, ValueError, IndexError, TypeError):
        raise UserError(
            f"'{line.strip()[:80]}' is no test that can be frozen",
            where=where,
            fix=f"write `assert {function}(ARGUMENTS) == VALUE` with plain values",
        ) from None


def too_weak(tests: Sequence[Test]) -> str:
    """Return how a function that does nothing would pass, or "" if none would."""
    expected = [repr(test.expected) for test in tests]
    if len(set(expected)) < 2:
        return "returning always the same"
    arguments = max((len(test.arguments) for test in tests), default=0)
    for place in range(arguments):
        if all(len(test.arguments) > place and equal(test.arguments[place], test.expected) for test in tests):
            return f"returning argument {place + 1}"
    return ""


def _of_condition(condition: ast.expr, function: str) -> Test:
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        return Test(_arguments(condition.operand, function), False)
    if isinstance(condition, ast.Call) and not _is_abs(condition):
        return Test(_arguments(condition, function), True)
    assert isinstance(condition, ast.Compare)
    assert len(condition.ops) == 1
    (operator,), (right,) = condition.ops, condition.comparators
    if isinstance(operator, ast.Eq | ast.Is):
        return Test(_arguments(condition.left, function), encode(ast.literal_eval(right)))
    # abs(f(x) - y) < z
    assert isinstance(operator, ast.Lt | ast.LtE)
    assert _is_abs(condition.left)
    difference = condition.left.args[0]  # type: ignore[attr-defined]
    assert isinstance(difference, ast.BinOp)
    assert isinstance(difference.op, ast.Sub)
    expected = float(ast.literal_eval(difference.right))
    return Test(_arguments(difference.left, function), expected, float(ast.literal_eval(right)))


def _is_abs(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "abs"


def _arguments(call: ast.expr, function: str) -> list[Any]:
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    assert call.func.id == function
    assert not call.keywords
    return [encode(ast.literal_eval(argument)) for argument in call.args]
