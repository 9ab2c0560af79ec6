"""Processes that must not outlive the one that started them."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

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


def serve_parent() -> None:
    """Make this a helper process: it ends with the one that started it, and not by requests to stop.

    Terminals and schedulers send those to every process of a job.
    """
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def attempt_id() -> str:
    """Return what the ranks of an attempt share, on all nodes, and those of another do not."""
    given = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # torchrun's default
    return str(os.getppid()) if given == "none" else given


def started_at() -> float:
    """Return when this process began, in seconds since 1970; elsewhere than on Linux, now."""
    if sys.platform != "linux":
        return time.time()
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): starttime
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
