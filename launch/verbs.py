"""Verbs by name: each is a module with a `main`, loaded only when it is asked for."""

import importlib
from collections.abc import Sequence


def run_verb(module: str, words: Sequence[str]) -> int:
    """Call `main(words)` of a module of isthmus and return its exit code."""
    code: int = importlib.import_module(f"isthmus.{module}").main(words)
    return code
