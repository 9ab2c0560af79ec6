"""What must be the same wherever a run computes: the code, the libraries, and what lies below them."""

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import isthmus
from isthmus.launch.snapshot import PACKAGES

# These may differ, and a run goes on; whoever hunts a strange error will want to know.
MAY_DIFFER = ("python patch", "driver", "kernel", "libc")


def versions() -> dict[str, str]:
    """Return name -> version of everything that this process computes with."""
    import torch

    python = ".".join(platform.python_version_tuple()[:2])
    found = {"isthmus": f"{isthmus.__version__} ({source_hash()})", "python": python}
    for name in (*PACKAGES[1:], "omegaconf"):  # isthmus itself is told above, with its code
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    found["torch"] = torch.__version__  # with the build, as in +cu128
    if torch.cuda.is_available():
        found["CUDA"] = str(torch.version.cuda)
        found["NCCL"] = ".".join(str(part) for part in torch.cuda.nccl.version())
        found["driver"] = _driver()
    found["python patch"] = platform.python_version()
    found["kernel"] = platform.release()
    found["libc"] = "-".join(platform.libc_ver())
    return found


def source_hash() -> str:
    """Return 8 hex digits of the package's own code: two checkouts may bear one version."""
    root = Path(isthmus.__file__).parent
    digest = hashlib.sha256()
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.endswith((".py", ".yaml"))
    ]
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def _driver() -> str:
    try:
        line = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    return next((word for word in line.split() if word[0].isdigit()), line)
