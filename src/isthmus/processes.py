"""Processes that must not outlive the one that started them."""

import ctypes
import os
import signal
import sys

DIE_WITH_PARENT = "ISTHMUS_DIE_WITH_PARENT"  # set by a launcher in the environment of its ranks
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that started it ends, even by SIGKILL. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def die_with_launcher() -> None:
    """Do so if the launcher asked for it."""
    if os.environ.get(DIE_WITH_PARENT):
        die_with_parent()
