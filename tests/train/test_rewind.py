"""Going back behind a spike is exact: afterwards the run is the one that would have been without those samples.

`benchmarks/rewind.py` does the same with tensor and pipeline parallelism and with exact sync.
"""

from pathlib import Path

import pytest
from support.rewinds import check_rewind


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "kill"), [("DP 2", True), ("two sites, local", False)])
def test_the_run_that_went_back_equals_the_run_without_those_samples(
    shape: str, kill: bool, tmp_path: Path, shared_cache: Path
) -> None:
    check_rewind(shape, tmp_path, shared_cache, kill=kill)
