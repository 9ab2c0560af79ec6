"""The system call filter: a BPF program that the kernel runs before each call of the sandboxed program.

struct sock_filter and sock_fprog of linux/filter.h, struct seccomp_data of linux/seccomp.h.
"""

import ctypes
import errno
import struct

from isthmus.data.synthetic.sandbox import linux, syscalls

_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000  # calls of the x32 ABI have this bit
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2

_CLONE_THREAD = 0x00010000
_NEW_NAMESPACES = 0x7E020000  # all CLONE_NEW* that clone takes
# Shared memory is counted against no limit of a process, nor is memory that grows down or huge pages.
_MAP_SHARED, _MAP_GROWSDOWN, _MAP_HUGETLB = 0x01, 0x0100, 0x40000
_AF_UNIX = 1
_TERMINAL_AND_FLAGS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIO(N)CLEX
# NAME (set, get), GET_DUMPABLE, CAPBSET_READ, NO_NEW_PRIVS (set, get), SET_VMA
_PRCTL = (15, 16, 3, 23, 38, 39, 0x53564D41)


def program(*, processes: bool, machine: str | None = None) -> bytes:
    """Return the filter.

    Args:
        processes: the program may start others; otherwise only threads.
        machine: `x86_64` or `aarch64`; this one's if None.
    """
    checked = syscalls.checked(machine)
    load_number = _instruction(_LOAD, _NUMBER)
    parts = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, syscalls.audit_architecture(machine), 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        load_number,
        _instruction(_JUMP_GREATER_EQUAL, _X32, 0, 1),
        _instruction(_RETURN, _KILL_PROCESS),
    ]
    for number in syscalls.allowed(machine).values():
        parts += [_instruction(_JUMP_EQUAL, number, 0, 1), _instruction(_RETURN, _ALLOW)]
    clone = _refuse_if_any(0, _NEW_NAMESPACES, errno.EPERM)
    if processes:
        parts += _when(checked.get("fork"), [_instruction(_RETURN, _ALLOW)])
        parts += _when(checked.get("vfork"), [_instruction(_RETURN, _ALLOW)])
    else:
        clone += [*_load(0), _instruction(_JUMP_SET, _CLONE_THREAD, 1, 0), _refuse(errno.EAGAIN)]
    parts += _when(checked["clone"], [*clone, _instruction(_RETURN, _ALLOW)])
    # Its flags are in memory, where a filter cannot look; the C libraries fall back to clone.
    parts += _when(checked["clone3"], [_refuse(errno.ENOSYS)])
    mapping = _refuse_if_any(3, _MAP_SHARED | _MAP_GROWSDOWN | _MAP_HUGETLB, errno.EACCES)
    parts += _when(checked["mmap"], [*mapping, _instruction(_RETURN, _ALLOW)])
    parts += _when(checked["ioctl"], _allow_values(1, _TERMINAL_AND_FLAGS, errno.ENOTTY))
    parts += _when(checked["prctl"], _allow_values(0, _PRCTL, errno.EPERM))
    parts += _when(checked["prlimit64"], _allow_values(0, (0,), errno.EPERM))  # its own limits only
    parts += _when(checked["socketpair"], _allow_values(0, (_AF_UNIX,), errno.EACCES))
    parts += [
        _instruction(_JUMP_GREATER, syscalls.NEWEST_KNOWN, 0, 1),
        _refuse(errno.ENOSYS),
        _refuse(errno.EPERM),
    ]
    return b"".join(parts)


def install(filter_program: bytes) -> None:
    """Put this process, and all that it starts, behind a filter for good. `no_new_privileges` must hold already."""
    code = ctypes.create_string_buffer(filter_program, len(filter_program))
    described = struct.pack("HxxxxxxP", len(filter_program) // 8, ctypes.addressof(code))
    linux.prctl(_PR_SET_SECCOMP, _MODE_FILTER, described)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(number: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | number)


def _when(number: int | None, then: list[bytes]) -> list[bytes]:
    """Instructions that are skipped for other calls than this one; they must end in a return."""
    return [] if number is None else [_instruction(_JUMP_EQUAL, number, 0, len(then)), *then]


def _load(argument: int) -> list[bytes]:
    """Load the lower half of an argument; both architectures are little-endian."""
    return [_instruction(_LOAD, _ARGUMENTS + 8 * argument)]


def _refuse_if_any(argument: int, bits: int, number: int) -> list[bytes]:
    return [*_load(argument), _instruction(_JUMP_SET, bits, 0, 1), _refuse(number)]


def _allow_values(argument: int, values: tuple[int, ...], otherwise: int) -> list[bytes]:
    found = _load(argument)
    for value in values:
        found += [_instruction(_JUMP_EQUAL, value, 0, 1), _instruction(_RETURN, _ALLOW)]
    return [*found, _refuse(otherwise)]
