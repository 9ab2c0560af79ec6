"""Whether the walls stand: a program that tries each of them, run before any other."""

import json

from isthmus.data.synthetic.sandbox.job import Job, Limits
from isthmus.data.synthetic.sandbox.slot import SandboxFailed, Slot
from isthmus.errors import UserError

_PROGRAM = """
import ctypes, json, os, socket, sys

broken = []
number = {"x86_64": 101, "aarch64": 117}[os.uname().machine]  # ptrace

def attempt(wall, function):
    try:
        function()
    except (OSError, MemoryError, ValueError):
        return
    broken.append(wall)

def trace():
    if ctypes.CDLL(None, use_errno=True).syscall(number, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno())

def threads():
    import threading
    started = []
    gate = threading.Event()
    try:
        for _ in range(64):
            started.append(threading.Thread(target=gate.wait, daemon=True))
            started[-1].start()
    except RuntimeError:
        raise OSError() from None
    finally:
        gate.set()

attempt("mount namespace (the machine's files are in sight)", lambda: os.stat("/proc/1"))
attempt("mount namespace (the libraries can be written to)", lambda: open(os.__file__, "ab"))
attempt("Landlock", lambda: os.listdir("/"))
attempt("network", lambda: socket.socket())
attempt("seccomp", trace)
attempt("processes", os.fork)
attempt("limit of processes", threads)
attempt("limit of memory", lambda: bytearray(1 << 30))
attempt("limit of files", lambda: os.truncate(os.open("big", os.O_CREAT | os.O_WRONLY), 1 << 30) or open("big"))
attempt("users", lambda: os.setuid(0))
if os.getpid() == 1 or os.getuid() == 0:
    broken.append("user and process namespaces")
os.write(3, json.dumps(broken).encode())
"""


def probe(slot: Slot) -> None:
    """Run the program.

    Raises:
        UserError: something that must be impossible was possible, or nothing runs at all.
    """
    limits = Limits(memory_bytes=256 << 20, threads=16, file_bytes=1 << 20)
    try:
        files = {"probe.py": _PROGRAM.encode()}
        outcome = slot.run(Job(language="python", main="probe.py", files=files, limits=limits))
    except SandboxFailed as error:
        raise _refused(str(error)) from None
    if not outcome.succeeded:
        raise _refused(outcome.stderr.decode(errors="replace")[-300:] or f"the probe ended with {outcome.code}")
    broken = json.loads(outcome.result)
    if broken:
        raise _refused(f"not held here: {', '.join(broken)}")


def _refused(why: str) -> UserError:
    return UserError(
        f"untrusted programs cannot be confined on this machine ({why})",
        where="sandbox",
        fix="run it on a machine that permits user namespaces, Landlock and seccomp (Linux 5.14 or newer)",
    )
