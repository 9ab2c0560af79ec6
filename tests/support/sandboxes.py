"""Sandboxes for tests."""

from collections.abc import Sequence

import pytest

from isthmus.data.synthetic.sandbox.pool import Sandbox
from isthmus.errors import UserError


def sandbox_or_skip(languages: Sequence[str] = (), slots: int = 2) -> Sandbox:
    """Return an open sandbox; skip the test where the machine cannot hold one."""
    sandbox = Sandbox(languages, slots)
    try:
        sandbox.open()
    except UserError as error:
        pytest.skip(str(error))
    return sandbox
