"""The published figures beside the repository (../shared/planner), for tests and benchmarks that want them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[3] / "shared/planner"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the published figures are not beside this checkout")


@cache
def published() -> dict[str, Any]:
    return json.loads((DATA / "published.json").read_text())
