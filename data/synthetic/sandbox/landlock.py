"""Landlock: what a process and its children may do with files, enforced by the kernel's security module.

struct landlock_ruleset_attr and landlock_path_beneath_attr of linux/landlock.h; the kernel's
Documentation/userspace-api/landlock.rst.
"""

import os
import struct
from collections.abc import Sequence

from isthmus.data.synthetic.sandbox import linux

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FIRST_ABI = (1 << 13) - 1  # the thirteen rights of ABI 1
# Rights that came later, by the ABI that brought them: REFER, TRUNCATE, IOCTL_DEV.
_LATER = {2: 1 << 13, 3: _TRUNCATE, 5: _IOCTL_DEV}
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2
_CREATE_RULESET_VERSION, _RULE_PATH_BENEATH = 1, 1


def abi() -> int:
    """Return the version of Landlock that the kernel offers.

    Raises:
        OSError: it offers none.
    """
    return linux.syscall("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)


def restrict(
    version: int, *, read: Sequence[str], execute: Sequence[str], devices: Sequence[str], scratch: str
) -> None:
    """Leave this process the paths given, and no others.

    Args:
        version: what `abi` returned.
        read: folders and files that may be read.
        execute: files that may be started.
        devices: read and written.
        scratch: the folder in which files may be made, changed and removed, but not started.
    """
    rights = _FIRST_ABI
    for since, right in _LATER.items():
        rights |= right if version >= since else 0
    network = _BIND_TCP | _CONNECT_TCP if version >= 4 else 0
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if version >= 6 else 0
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("QQQ", rights, network, scoped)[:size]
    ruleset = linux.syscall("landlock_create_ruleset", attributes, size, 0)
    for path in read:
        _allow(ruleset, path, _READ_FILE | _READ_DIR)
    for path in execute:
        _allow(ruleset, path, _READ_FILE | _EXECUTE)
    for path in devices:
        _allow(ruleset, path, _READ_FILE | _WRITE_FILE)
    _allow(ruleset, scratch, rights & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _IOCTL_DEV))
    linux.no_new_privileges()
    linux.syscall("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not os.path.isdir(path):
        rights &= _EXECUTE | _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV
    rule = struct.pack("=Qi", rights, descriptor)
    linux.syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, rule, 0)
    os.close(descriptor)
