"""Golden trajectories: numbers that no change may move by accident. `pytest --regenerate-golden` writes them."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "golden"


def check_golden(name: str, value: dict[str, Any], *, regenerate: bool, relative: float) -> None:
    """Compare every number of `value` with the stored file, within a relative tolerance.

    Raises:
        AssertionError: the file is missing, has other keys, or a number differs by more.
    """
    path = FOLDER / f"{name}.json"
    if regenerate:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n")
    assert path.exists(), f"{path} is missing: run pytest --regenerate-golden and commit it"
    _compare(json.loads(path.read_text()), value, name, relative)


def _compare(expected: Any, actual: Any, where: str, relative: float) -> None:
    if isinstance(expected, dict):
        assert expected.keys() == actual.keys(), f"{where}: {sorted(expected)} became {sorted(actual)}"
        for key, entry in expected.items():
            _compare(entry, actual[key], f"{where}/{key}", relative)
    elif isinstance(expected, list):
        assert len(expected) == len(actual), f"{where}: {len(expected)} entries became {len(actual)}"
        for index, entry in enumerate(expected):
            _compare(entry, actual[index], f"{where}[{index}]", relative)
    else:
        assert abs(expected - actual) <= relative * abs(expected), f"{where}: {expected} became {actual}"
