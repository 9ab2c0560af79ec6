"""What a launch was made of: the code's revision, the versions of packages, the command."""

import json
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import isthmus

# What may change numbers, or what a checkpoint can be read by.
PACKAGES = (
    "isthmus",
    "torch",
    "megatron-core",
    "transformer-engine",
    "numpy",
    "safetensors",
    "tokenizers",
    "hydra-core",
)
_GIT_SECONDS = 10


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> dict[str, Any] | None:
    """Return commit and uncommitted changes of the code that runs; None where it is not a git checkout."""
    folder = Path(isthmus.__file__).resolve().parent
    # An installed copy may lie inside somebody else's checkout.
    tracked = _git(folder, "ls-files", "--error-unmatch", "errors.py")
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    if commit is None:
        return None
    return {"commit": commit, "changed": (_git(folder, "status", "--porcelain") or "").splitlines()}


def snapshot(command: Sequence[str]) -> dict[str, Any]:
    """Return everything that launch/environment.json holds."""
    return {
        "command": ["isthmus", "launch", *command],
        "revision": revision(),
        "versions": versions(),
        "machine": {"host": platform.node(), "system": platform.platform()},
        "packages": dict(sorted((entry.name, entry.version) for entry in metadata.distributions())),
    }


def _git(folder: Path, *words: str) -> str | None:
    try:
        result = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


if __name__ == "__main__":
    print(json.dumps({"versions": versions(), "revision": revision()}))
