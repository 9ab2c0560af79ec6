"""The file system that a sandboxed program sees: libraries, interpreters, three devices, an empty scratch folder."""

import glob
import os
from collections.abc import Iterable, Sequence

from isthmus.data.synthetic.sandbox import linux

SCRATCH = "/scratch"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_PACKAGES = ("site-packages", "dist-packages")
_PLACES = ("/tmp", "/var/tmp", "/dev/shm", "/mnt", "/usr")


def build(reads: Sequence[str]) -> None:
    """Make this process's mount namespace consist of a new root, with `reads` at their own paths, all read-only.

    It must be in a mount namespace of its own, with its capabilities.

    Raises:
        OSError: the machine does not permit a mount.
    """
    linux.mount("", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    shown = _outermost(path for path in reads if not os.path.islink(path))
    links = {path: os.readlink(path) for path in reads if os.path.islink(path)}
    # Opened first: the new root is mounted over a folder that may have one of them in it.
    opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in (*shown, *DEVICES)}
    root = next(place for place in _PLACES if os.path.isdir(place))
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", root, "tmpfs", flags, "mode=0755,size=256k,nr_inodes=1000")
    for path, descriptor in opened.items():
        _show(descriptor, root + path)
        if path not in DEVICES:
            linux.restrict_mounts(root + path, linux.MOUNT_ATTR_NODEV)
    for path in shown:
        # The standard library's own folder, a folder with it inside, and those of Debian for all versions of Python.
        for pattern in ("*-packages", "python3*/*-packages"):
            for folder in glob.glob(f"{glob.escape(root + path)}/{pattern}"):
                if os.path.basename(folder) in _PACKAGES:
                    _hide(folder)
    for path, target in links.items():
        if not os.path.lexists(root + path):
            os.makedirs(os.path.dirname(root + path), exist_ok=True)
            os.symlink(target, root + path)
    os.mkdir(root + SCRATCH)
    os.chdir(root)
    linux.pivot_root(".", ".")  # pivot_root(2): the old root then lies on top of the new one
    linux.unmount(".", linux.MNT_DETACH)
    os.chdir("/")
    linux.restrict_mounts("/", linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID)
    for descriptor in opened.values():
        os.close(descriptor)


def mount_scratch(*, owner: int, size_bytes: int, files: int) -> None:
    """Put an empty file system in memory over the scratch folder; it ends with the last process that sees it."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    limits = f"mode=0700,uid={owner},gid={owner},size={size_bytes},nr_inodes={files + 1}"
    linux.mount("tmpfs", SCRATCH, "tmpfs", flags, limits)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Leave out what is inside another of the paths."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{outer}/") for outer in found):
            found.append(path)
    return found


def _show(descriptor: int, target: str) -> None:
    source = f"/proc/self/fd/{descriptor}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o644))
    linux.mount(source, target, None, linux.MS_BIND | linux.MS_REC)


def _hide(folder: str) -> None:
    """Cover installed packages, which are none of a program's business."""
    if os.path.isdir(folder):
        linux.mount("tmpfs", folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=4k,nr_inodes=1")
