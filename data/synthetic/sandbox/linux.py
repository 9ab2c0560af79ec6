"""The system calls that the sandbox needs and Python 3.11 lacks."""

import ctypes
import os
import struct

from isthmus.data.synthetic.sandbox import syscalls

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CAPABILITY_VERSION_3 = 0x20080522

_library = ctypes.CDLL(None, use_errno=True)
_numbers = syscalls.own() if syscalls.supported() else {}


def unshare(flags: int) -> None:
    """Give this process (its future children, for CLONE_NEWPID) namespaces of its own."""
    _call("unshare", flags)


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode() if kind else None, flags, data.encode() or None)


def unmount(target: str, flags: int) -> None:
    _call("umount2", target.encode(), flags)


def restrict_mounts(target: str, attributes: int) -> None:
    """Set attributes on a mount and all that are mounted below it."""
    described = struct.pack("QQQQ", attributes, 0, 0, 0)  # struct mount_attr
    syscall("mount_setattr", _AT_FDCWD, target.encode(), _AT_RECURSIVE, described, len(described))


def pivot_root(new: str, old: str) -> None:
    syscall("pivot_root", new.encode(), old.encode())


def die_with(signal_number: int) -> None:
    """Have the kernel send a signal when this process's parent ends."""
    _call("prctl", _PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def no_new_privileges() -> None:
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_capabilities() -> None:
    """Give up every capability in this process's user namespace, for good."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _call("capset", header, bytes(24))


def syscall(name: str, *arguments: int | bytes | None) -> int:
    """Make a system call of `syscalls.own()` by number."""
    return _checked(name, _library.syscall, (_numbers[name], *arguments))


def prctl(option: int, *arguments: int | bytes) -> int:
    return _checked("prctl", _library.prctl, (option, *arguments))


def _call(name: str, *arguments: int | bytes | None) -> int:
    return _checked(name, getattr(_library, name), arguments)


def _checked(name: str, function: object, arguments: tuple[int | bytes | None, ...]) -> int:
    # Variadic: every number as wide as a register.
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = function(*wide)  # type: ignore[operator]
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result
