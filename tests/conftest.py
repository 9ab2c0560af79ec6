import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, before torch is loaded
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # and as the planner does, before numpy is


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate-golden", action="store_true", help="write the golden trajectories anew")


@pytest.fixture
def regenerate_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--regenerate-golden"))


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of tokenizers for all tests, apart from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ISTHMUS_TEST_CACHE"] = str(folder)
    return folder
