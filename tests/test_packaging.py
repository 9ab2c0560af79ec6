"""The wheel that we would ship installs into a fresh environment and composes outside the repository."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
pytest.importorskip("build", reason="building wheels comes with the test extra")
pytest.importorskip("hatchling", reason="building wheels comes with the test extra")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (path,) = folder.glob("isthmus-*.whl")
    return path


def test_the_wheel_holds_every_folder_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for expected in (
        "isthmus/py.typed",
        "isthmus/train/loop.py",
        "isthmus/parallelism/engine.py",
        "isthmus/fault_tolerance/__init__.py",
        "isthmus/launch/cli.py",
        "isthmus/configs/train.yaml",
        "isthmus/configs/model/nano.yaml",
        "isthmus/data/samples/web/tides.md",
    ):
        assert expected in names
    assert not [name for name in names if name.startswith(("train/", "tests/", "benchmarks/", "isthmus/tests"))]


def test_it_composes_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "fresh"
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    # The dependencies are those of this environment; isthmus itself must come from the wheel.
    libraries = sysconfig.get_path("purelib")
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    fresh = Path(subprocess.check_output(ask, text=True).strip())
    # The editable install's own path file is not followed: only this one's lines count.
    (fresh / "dependencies.pth").write_text(f"{libraries}\n")
    program = "import isthmus, sys; from isthmus.launch.cli import main; print(isthmus.__file__); main(sys.argv[1:])"
    result = subprocess.run(
        [python, "-c", program, "train", "--print-config", "experiment=smoke", "model=124m"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    first, *rest = result.stdout.splitlines()
    assert first.startswith(str(environment))
    assert "  hidden_size: 768" in rest
    command = environment / "bin/isthmus"
    assert "train" in subprocess.check_output([command, "--help"], cwd=tmp_path, text=True)
