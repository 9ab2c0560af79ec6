"""The system calls that the lab needs and Python 3.11 lacks."""

import ctypes
import os

CLONE_NEWNET = 0x40000000
CLONE_NEWPID = 0x20000000


def unshare(flags: int) -> None:
    """Give the calling thread (CLONE_NEWNET) or its future children (CLONE_NEWPID) namespaces of their own.

    Raises:
        OSError: not permitted.
    """
    _call("unshare", flags)


def setns(descriptor: int, flags: int) -> None:
    """Move the calling thread into a namespace.

    Raises:
        OSError: not permitted.
    """
    _call("setns", descriptor, flags)


def _call(name: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
