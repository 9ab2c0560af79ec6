"""The system calls that a program in the sandbox may make, with their numbers on both architectures.

What is not listed is refused. Left out on purpose is all that reaches other processes, the network, devices, mounts,
keys, tracing, other users or large parts of the kernel: socket, connect, bind, ptrace, process_vm_*, mount, setns,
unshare, bpf, io_uring, userfaultfd, keyctl, memfd_create, System V and POSIX IPC, mknod, inotify, perf_event_open,
setuid and so on.
"""

import platform

# name, number on x86-64, number on aarch64 ("-": it has none). Linux' unistd_64.h and asm-generic/unistd.h.
_ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, pread64 17 67,
pwrite64 18 68, readv 19 65, writev 20 66, preadv 295 69, pwritev 296 70, preadv2 327 286, pwritev2 328 287,
access 21 -, pipe 22 -, pipe2 293 59, select 23 -, pselect6 270 72, ppoll 271 73, dup 32 23, dup2 33 -, dup3 292 24,
fcntl 72 25, flock 73 32, fsync 74 82, fdatasync 75 83, truncate 76 45, ftruncate 77 46, getdents 78 -,
getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, renameat 264 38, renameat2 316 276,
mkdir 83 -, mkdirat 258 34, rmdir 84 -, creat 85 -, link 86 -, linkat 265 37, unlink 87 -, unlinkat 263 35,
symlink 88 -, symlinkat 266 36, readlink 89 -, readlinkat 267 78, chmod 90 -, fchmod 91 52, fchmodat 268 53,
chown 92 -, fchown 93 55, lchown 94 -, fchownat 260 54, umask 95 166, utime 132 -, utimes 235 -, utimensat 280 88,
futimesat 261 -, openat 257 56, openat2 437 437, newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44,
faccessat 269 48, faccessat2 439 439, sendfile 40 71, copy_file_range 326 285, splice 275 76, tee 276 77,
fallocate 285 47, fadvise64 221 223, readahead 187 213, sync_file_range 277 84, close_range 436 436, getxattr 191 8,
lgetxattr 192 9, fgetxattr 193 10, listxattr 194 11, llistxattr 195 12, flistxattr 196 13, mprotect 10 226,
munmap 11 215, brk 12 214, mremap 25 216, madvise 28 233, mincore 27 232, msync 26 227, membarrier 324 283,
execve 59 221, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95, kill 62 129, tkill 200 130, tgkill 234 131,
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigsuspend 130 133, rt_sigpending 127 136,
rt_sigtimedwait 128 137, sigaltstack 131 132, getpid 39 172, getppid 110 173, gettid 186 178, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, getgroups 115 158, getresuid 118 148, getresgid 120 150,
getpgid 121 155, getpgrp 111 -, getsid 124 156, setsid 112 157, setpgid 109 154, capget 125 90, arch_prctl 158 -,
set_tid_address 218 96, set_robust_list 273 99, get_robust_list 274 100, rseq 334 293, futex 202 98,
futex_waitv 449 449, sched_yield 24 124, sched_getaffinity 204 123, sched_setaffinity 203 122, sched_getparam 143 121,
sched_getscheduler 145 120, sched_get_priority_max 146 125, sched_get_priority_min 147 126, getpriority 140 141,
uname 63 160, sysinfo 99 179, getrlimit 97 163, setrlimit 160 164, getrusage 98 165, times 100 153,
getcpu 309 168, clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101,
gettimeofday 96 169, time 201 -, alarm 37 -, getitimer 36 102, setitimer 38 103, timer_create 222 107,
timer_settime 223 110, timer_gettime 224 108, timer_delete 226 111, timer_getoverrun 225 109, timerfd_create 283 85,
timerfd_settime 286 86, timerfd_gettime 287 87, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19, signalfd 282 -,
signalfd4 289 74, pause 34 -, restart_syscall 219 128, sendto 44 206, recvfrom 45 207, sendmsg 46 211, recvmsg 47 212,
shutdown 48 210, getsockname 51 204, getpeername 52 205, getsockopt 55 209, setsockopt 54 208, getrandom 318 278
"""
# Allowed or not by their arguments, in seccomp.py.
_CHECKED = """
clone 56 220, fork 57 -, vfork 58 -, clone3 435 435, mmap 9 222, ioctl 16 29, prctl 157 167, socketpair 53 199,
prlimit64 302 261
"""
# What the sandbox itself calls and Python 3.11 has no name for.
_OWN = "pivot_root 155 41, mount_setattr 442 442, landlock_create_ruleset 444 444, landlock_add_rule 445 445, "
_OWN += "landlock_restrict_self 446 446"
NEWEST_KNOWN = 450  # calls with larger numbers came later than this table

# AUDIT_ARCH_* of linux/audit.h: what seccomp calls the two.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7), "arm64": (1, 0xC00000B7)}


def supported() -> bool:
    """Return whether this machine's system calls are known."""
    return platform.machine() in _ARCHITECTURES


def audit_architecture(machine: str | None = None) -> int:
    """Return what seccomp calls the architecture."""
    return _ARCHITECTURES[machine or platform.machine()][1]


def allowed(machine: str | None = None) -> dict[str, int]:
    """Return the calls that are always allowed, by name."""
    return _read(_ALLOWED, machine)


def checked(machine: str | None = None) -> dict[str, int]:
    """Return the calls whose arguments decide."""
    return _read(_CHECKED, machine)


def own(machine: str | None = None) -> dict[str, int]:
    """Return the calls that set the sandbox up."""
    return _read(_OWN, machine)


def _read(table: str, machine: str | None) -> dict[str, int]:
    column = 1 + _ARCHITECTURES[machine or platform.machine()][0]
    rows = [row.split() for row in table.replace("\n", " ").split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}
