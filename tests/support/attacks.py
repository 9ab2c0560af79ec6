"""Programs that try to break out of the sandbox. Each prints ESCAPED if, and only if, it has done what it must not.

`{secret}`, `{home}`, `{victim}`, `{socket}`, `{abstract}` and `{port}` stand for what it aims at outside, given by
`World`: a file and a folder that are none of the program's business, a process, sockets. Where `bare` is set, the
attack is harmless enough to be run without a sandbox too, as root, to prove that it works there.
"""

from dataclasses import dataclass, field
from typing import Any

_CALL = """
import ctypes, os
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_x86 = os.uname().machine == "x86_64"
def call(x86, aarch64, *arguments):
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _libc.syscall(x86 if _x86 else aarch64, *wide)
def escaped(result, what=""):
    if result >= 0:
        print("ESCAPED", what, result, flush=True)
"""
_TRY = """
import os
def attempt(function, *arguments):
    try:
        result = function(*arguments)
    except (OSError, ValueError, LookupError, MemoryError, RuntimeError, ImportError) as error:
        print("refused:", error, flush=True)
        return None
    print("ESCAPED", repr(result)[:80], flush=True)
    return result
"""


@dataclass(frozen=True)
class Attack:
    """An attack.

    Args:
        kind: what it is after.
        limits: that it runs under, where they differ from the small ones of the suite.
        ends: how it may end in the sandbox besides exiting: `killed`, `wall_clock`, `output`.
        bare: it can be shown to succeed without the sandbox.
    """

    name: str
    kind: str
    code: str
    language: str = "python"
    limits: dict[str, Any] = field(default_factory=dict)
    ends: tuple[str, ...] = ()
    bare: bool = True


def _raw(name: str, kind: str, x86: int, aarch64: int, arguments: str, **rest: Any) -> Attack:
    code = _CALL + f"escaped(call({x86}, {aarch64}, {arguments}), {name!r})"
    return Attack(name, kind, code, **rest)


def _try(name: str, kind: str, code: str, **rest: Any) -> Attack:
    return Attack(name, kind, _TRY + code, **rest)


_SEVERAL: dict[str, Any] = {"processes": 8, "memory_bytes": 256 << 20}

_PROCESSES = [
    _try("fork", "processes", "\nif os.fork() == 0: os._exit(0)\nattempt(os.wait)"),
    Attack(
        "fork bomb",
        "processes",
        "import os, time\nchildren = []\n"
        "try:\n    for _ in range(64):\n        child = os.fork()\n        if child == 0:\n"
        "            time.sleep(1.5)\n            os._exit(0)\n        children.append(child)\n"
        "except OSError as error:\n    print(error)\n"
        "else:\n    print('ESCAPED', len(children), 'children')\n",
        limits=_SEVERAL,
    ),
    Attack(
        "exploding fork bomb",
        "processes",
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
        limits=_SEVERAL | {"wall_seconds": 0.5},
        ends=("wall_clock",),
        bare=False,
    ),
    Attack(
        "fork bomb in perl",
        "processes",
        "fork while 1;",
        "perl",
        _SEVERAL | {"wall_seconds": 0.5},
        ("wall_clock",),
        False,
    ),
    Attack(
        "threads without end",
        "processes",
        "import threading\ngate = threading.Event()\nthreads = []\n"
        "try:\n    for _ in range(100):\n        threads.append(threading.Thread(target=gate.wait))\n"
        "        threads[-1].start()\n    print('ESCAPED', len(threads))\n"
        "except RuntimeError as error:\n    print(error)\nfinally:\n    gate.set()\n",
    ),
    _try("a shell", "processes", "import subprocess\nattempt(subprocess.check_output, ['/bin/sh', '-c', 'id'])"),
    _try(
        "a shell, where processes are allowed",
        "processes",
        "import subprocess\nattempt(subprocess.check_output, ['/bin/sh', '-c', 'id'])",
        limits=_SEVERAL,
    ),
    Attack("becoming a shell", "processes", "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])"),
    Attack("becoming a shell, in perl", "processes", "exec '/bin/sh', '-c', 'echo ESCAPED';", "perl"),
    Attack(
        "a shell, in JavaScript",
        "processes",
        "require('child_process').execFile('/bin/sh', ['-c', 'echo ESCAPED'], (e, out) => console.log(e ? "
        "'refused' : out))",
        "javascript",
    ),
    Attack(
        "a file of its own",
        "processes",
        "import os\nopen('x', 'w').write('#!/bin/sh\\necho ESCAPED\\n')\nos.chmod('x', 0o755)\nos.execv('./x', ['x'])",
    ),
    Attack(
        "the loader starts a program",
        "processes",
        "import glob, os\nl = (glob.glob('/lib64/ld-linux*') + glob.glob('/lib/ld-linux*'))[0]\n"
        "os.execv(l, [l, '/bin/echo', 'ESCAPED'])",
    ),
    Attack(
        "a daemon that survives",
        "processes",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(0.4)\n"
        "        os.write(1, b'ESCAPED: still here')\n    os._exit(0)\n",
        limits=_SEVERAL,
    ),
    Attack(
        "children that outlive their parent and close everything",
        "processes",
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        os.closerange(0, 64)\n"
        "        time.sleep(600)\n",
        limits=_SEVERAL,
        bare=False,
    ),
    Attack(
        "zombies",
        "processes",
        "import os\nfor _ in range(5):\n    if os.fork() == 0: os._exit(0)\n",
        limits=_SEVERAL,
        bare=False,
    ),
]
_TIME = [
    Attack(
        "a loop without end", "time", "while True: pass", limits={"wall_seconds": 0.4}, ends=("wall_clock",), bare=False
    ),
    Attack(
        "CPU time",
        "time",
        "while True: pass",
        limits={"wall_seconds": 300, "cpu_seconds": 1},
        ends=("killed",),
        bare=False,
    ),
    Attack(
        "sleeping for ever",
        "time",
        "import time\ntime.sleep(1e6)",
        limits={"wall_seconds": 0.3},
        ends=("wall_clock",),
        bare=False,
    ),
    Attack(
        "ignoring every signal",
        "time",
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass",
        limits={"wall_seconds": 0.4},
        ends=("wall_clock",),
        bare=False,
    ),
    Attack(
        "a process that stops itself",
        "time",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        limits={"wall_seconds": 0.3},
        ends=("wall_clock",),
        bare=False,
    ),
    Attack("a loop in JavaScript", "time", "for (;;);", "javascript", {"wall_seconds": 0.6}, ("wall_clock",), False),
    _try(
        "more CPU time than it was given",
        "time",
        "import resource\nattempt(resource.setrlimit, resource.RLIMIT_CPU, (100, 100))\n",
        bare=False,
    ),
    _try("a better place in the queue", "time", "attempt(os.setpriority, os.PRIO_PROCESS, 0, -10)"),
]
_OUTPUT = [
    Attack("output without end", "output", "while True: print('x' * 4096)", ends=("output",), bare=False),
    Attack("a lot of output", "output", "print('x' * 3_000_000)\nprint('ESCAPED')", ends=("output",)),
    Attack(
        "a lot of errors",
        "output",
        "import sys\nsys.stderr.write('x' * 3_000_000)\nsys.stderr.flush()\nprint('ESCAPED')",
        ends=("output",),
    ),
    Attack(
        "a lot of results",
        "output",
        "import os\nfor _ in range(3000): os.write(3, b'x' * 1000)\nprint('ESCAPED')",
        ends=("output",),
        bare=False,
    ),
]
_MEMORY = [
    Attack("memory", "memory", "x = bytearray(150 << 20)\nprint('ESCAPED', len(x))"),
    Attack(
        "memory, bit by bit",
        "memory",
        "x = []\nfor _ in range(150): x.append(b'x' * (1 << 20) + bytes([len(x)]))\nprint('ESCAPED')",
    ),
    Attack(
        "memory in JavaScript",
        "memory",
        "const x = []; for (let i = 0; i < 150; i++) x.push(Buffer.alloc(1 << 20, i)); console.log('ESCAPED')",
        "javascript",
        ends=("killed",),
    ),
    Attack(
        "memory of many processes",
        "memory",
        "import os, time\npids = []\nfor _ in range(3):\n    pid = os.fork()\n    if pid == 0:\n"
        "        x = bytearray(60 << 20)\n        os._exit(0)\n    pids.append(pid)\n"
        "if all(os.waitpid(p, 0)[1] == 0 for p in pids): print('ESCAPED')",
        limits={"processes": 4},
    ),
    _try(
        "shared memory",
        "memory",
        "import mmap\nx = attempt(mmap.mmap, -1, 150 << 20)\nif x: x[::4096] = bytes(150 << 8)",
    ),
    _try("files in memory", "memory", "import os\nattempt(os.memfd_create, 'x')"),
    _raw("memory that grows down", "memory", 9, 222, "0, 150 << 20, 3, 0x122, -1, 0"),
    _raw("an address space without end", "memory", 9, 222, "0, 1 << 42, 1, 0x4022, -1, 0"),
    Attack(
        "System V shared memory",
        "memory",
        _CALL + "n = call(29, 194, 0, 1 << 20, 0o1600)\nescaped(n)\ncall(31, 195, n, 0, 0)",
    ),
    Attack(
        "a System V message queue", "memory", _CALL + "n = call(68, 186, 0, 0o1600)\nescaped(n)\ncall(71, 187, n, 0, 0)"
    ),
    _try(
        "/dev/shm",
        "memory",
        "attempt(lambda: open('/dev/shm/isthmus-attack', 'w').close() or os.unlink('/dev/shm/isthmus-attack'))",
    ),
    Attack(
        "descriptors without end",
        "memory",
        "import os\nfds = []\ntry:\n    for _ in range(200): fds += os.pipe()\n    print('ESCAPED')\n"
        "except OSError as error: print(error)",
    ),
    Attack(
        "a big file",
        "disk",
        "import os\ntry:\n    with open('x', 'wb') as f:\n        for _ in range(3): f.write(bytes(1 << 20))\n"
        "    print('ESCAPED', os.path.getsize('x'))\nexcept OSError as error: print(error)",
    ),
    Attack(
        "many files",
        "disk",
        "try:\n    for i in range(300): open(f'f{i}', 'w').close()\n    print('ESCAPED')\n"
        "except OSError as error: print(error)",
    ),
    Attack(
        "a full disk",
        "disk",
        "try:\n    for i in range(20): open(f'f{i}', 'wb').write(bytes(1 << 20))\n    print('ESCAPED')\n"
        "except OSError as error: print(error)",
    ),
]
_FILES = [
    _try("/etc/passwd", "files", "attempt(lambda: open('/etc/passwd').read())"),
    Attack(
        "/etc/passwd, in perl",
        "files",
        "if (open my $f, '<', '/etc/passwd') { print 'ESCAPED ', scalar <$f> } else { print $! }",
        "perl",
    ),
    Attack(
        "/etc/passwd, in JavaScript",
        "files",
        "try { console.log('ESCAPED', require('fs').readFileSync('/etc/passwd').length) } catch (e) { "
        "console.log(e.code) }",
        "javascript",
    ),
    _try("a file in the user's home", "files", "attempt(lambda: open('{secret}').read())"),
    _try("the user's home", "files", "attempt(os.listdir, '{home}')"),
    _try("whether a file exists", "files", "attempt(os.stat, '{secret}')"),
    _try("the root folder", "files", "attempt(os.listdir, '/')"),
    _try("writing in the user's home", "files", "attempt(lambda: open('{home}/planted', 'w').close())"),
    _try(
        "writing in /tmp",
        "files",
        "attempt(lambda: open('/tmp/isthmus-attack', 'w').close() or os.unlink('/tmp/isthmus-attack'))",
    ),
    _try("changing a library", "files", "attempt(lambda: open(os.__file__, 'r+b').close())"),
    _try(
        "a file beside the libraries",
        "files",
        "p = os.path.dirname(os.__file__) + '/isthmus_attack.py'\n"
        "attempt(lambda: open(p, 'w').close() or os.unlink(p))",
    ),
    _try(
        "installed packages",
        "files",
        "import sys, sysconfig\nattempt(lambda: os.listdir(sysconfig.get_path('stdlib') + '/site-packages')[0])",
        bare=False,
    ),
    _try("a symbolic link", "files", "os.symlink('{secret}', 'link')\nattempt(lambda: open('link').read())"),
    _try(
        "a symbolic link to a folder",
        "files",
        "os.symlink('{home}', 'folder')\nattempt(lambda: open('folder/planted', 'w').close())",
    ),
    _try("a hard link", "files", "attempt(os.link, '{secret}', 'hard')"),
    _try("up and out", "files", "attempt(lambda: open('../' * 20 + '{secret}').read())"),
    _try("/proc/self/root", "files", "attempt(lambda: open('/proc/self/root{secret}').read())"),
    _try("/proc/self/cwd", "files", "attempt(os.listdir, '/proc/self/cwd/..')"),
    _try("/proc/self/fd", "files", "attempt(os.listdir, '/proc/self/fd')"),
    _try("/dev/fd", "files", "attempt(os.open, '/dev/fd/0', os.O_RDWR)", bare=False),
    Attack(
        "inherited descriptors",
        "files",
        "import os\nfor fd in [*range(4, 1024)]:\n    try:\n        os.fstat(fd)\n"
        "        print('ESCAPED', fd, os.pread(fd, 20, 0))\n    except OSError: pass",
    ),
    _raw(
        "a file by handle",
        "files",
        303,
        264,
        "-100, b'{secret}', (ctypes.c_char * 136)(128), ctypes.byref(ctypes.c_int()), 0",
    ),
    _try("another root", "files", "attempt(os.chroot, '/')"),
    _try(
        "the machine's disks",
        "files",
        "import stat\nattempt(os.mknod, 'disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))",
    ),
    _try(
        "a socket in the file system",
        "files",
        "import socket\nattempt(lambda: socket.socket(socket.AF_UNIX).connect('{socket}'))",
    ),
    _raw("a mount", "files", 165, 40, "b'none', b'{home}', b'tmpfs', 0, 0", bare=False),
    _raw("a new mount by descriptor", "files", 430, 430, "b'tmpfs', 0"),
    _raw("uncovering what a mount hides", "files", 166, 39, "b'/scratch', 2", bare=False),
    _raw("another root by pivoting", "files", 155, 41, "b'.', b'.'", bare=False),
    _raw("swap", "files", 167, 224, "b'./x', 0", bare=False),
]
_OTHERS = [
    _try("killing another process", "others", "attempt(os.kill, {victim}, 9)"),
    Attack("stopping its parent", "others", "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)", bare=False),
    Attack(
        "looking for processes",
        "others",
        "import os\nfor pid in range(3, 40000):\n    try:\n        os.kill(pid, 0)\n"
        "        print('ESCAPED', pid)\n        break\n    except ProcessLookupError: pass",
    ),
    Attack(
        "killing everything", "others", "import os\nos.kill(-1, 9)\nprint('still here')", ends=("killed",), bare=False
    ),
    Attack(
        "killing its first process",
        "others",
        "import os, signal\nfor n in range(1, 32):\n    try: os.kill(1, n)\n    except OSError: pass\n"
        "print('still here')",
        ends=("killed",),
        bare=False,
    ),
    _raw("a handle of another process", "others", 434, 434, "{victim}, 0"),
    _raw("tracing another process", "others", 101, 117, "16, {victim}, 0, 0"),
    _raw("tracing its parent", "others", 101, 117, "16, os.getppid(), 0, 0", bare=False),
    _raw("reading another's memory", "others", 310, 270, "{victim}, 0, 0, 0, 0, 0"),
    _try("another's environment", "others", "attempt(lambda: open('/proc/{victim}/environ').read())"),
    _try("its parent's memory", "others", "attempt(lambda: open(f'/proc/{os.getppid()}/mem', 'rb').close())"),
    _try("its parent's command", "others", "attempt(lambda: open(f'/proc/{os.getppid()}/cmdline').read())"),
    _raw("another's limits", "others", 302, 261, "{victim}, 7, 0, (ctypes.c_char * 16)()"),
    _raw("keys of the session", "others", 250, 219, "0, -3, 1"),
]
_NETWORK = [
    _try(
        "a local server",
        "network",
        "import socket\nattempt(lambda: socket.create_connection(('127.0.0.1', {port}), 1).close())",
    ),
    _try(
        "a datagram",
        "network",
        "import socket\nattempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', "
        "('127.0.0.1', {port})))",
    ),
    _try("listening", "network", "import socket\nattempt(lambda: socket.create_server(('127.0.0.1', 0)).close())"),
    _try("names of hosts", "network", "import socket\nattempt(socket.getaddrinfo, 'localhost', 80)"),
    _try("raw packets", "network", "import socket\nattempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)"),
    _try(
        "asking the kernel for interfaces",
        "network",
        "import socket\nattempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    ),
    _try(
        "an abstract socket",
        "network",
        "import socket\nattempt(lambda: socket.socket(socket.AF_UNIX).connect(chr(0) + '{abstract}'))",
    ),
    Attack(
        "a local server, in JavaScript",
        "network",
        "try { const c = require('net').connect({port}, '127.0.0.1', () => { console.log('ESCAPED'); "
        "c.destroy() }); c.on('error', e => console.log(e.code)) } catch (e) { console.log(e.code) }",
        "javascript",
    ),
    Attack(
        "a local server, in perl",
        "network",
        "use Socket; my $s; if (socket($s, PF_INET, SOCK_STREAM, 0) && connect($s, sockaddr_in({port}, "
        "inet_aton('127.0.0.1')))) { print 'ESCAPED' } else { print $! }",
        "perl",
    ),
]
_KERNEL = [
    _try("becoming root", "kernel", "attempt(os.setuid, 0)"),
    _try("becoming root by another call", "kernel", "attempt(os.setresuid, 0, 0, 0)"),
    _try("other groups", "kernel", "attempt(os.setgroups, [0])"),
    _raw(
        "capabilities",
        "kernel",
        126,
        91,
        "(ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)(1 << 21, 1 << 21, 0, 0, 0, 0)",
    ),
    _raw("a user namespace", "kernel", 272, 97, "0x10000000"),
    _raw("a process in a new user namespace", "kernel", 56, 220, "0x10000000 | 17, 0, 0, 0, 0", bare=False),
    _raw("another's namespace", "kernel", 308, 268, "0, 0", bare=False),
    _raw("io_uring", "kernel", 425, 425, "4, (ctypes.c_char * 120)()"),
    _raw("userfaultfd", "kernel", 323, 282, "1"),
    _raw("bpf", "kernel", 321, 280, "0, (ctypes.c_uint * 18)(2, 4, 8, 1), 72"),
    _raw("perf events", "kernel", 298, 241, "(ctypes.c_uint * 32)(1, 112), 0, -1, -1, 0"),
    _raw("the kernel's log", "kernel", 103, 116, "10, 0, 0"),
    _raw("loading a kernel module", "kernel", 175, 105, "b'', 0, b''", bare=False),
    _raw("another kernel", "kernel", 246, 104, "0, 0, 0, 0", bare=False),
    _raw("another personality", "kernel", 135, 92, "0x0040000"),
    _raw("the machine's name", "kernel", 170, 161, "b'sandbox', 7", bare=False),
    _raw("the machine's clock", "kernel", 227, 112, "0, 0", bare=False),
    _raw("rebooting", "kernel", 169, 142, "0, 0, 0, 0", bare=False),
    _raw("watching files", "kernel", 294, 26, "0"),
    _raw("a filter of its own", "kernel", 317, 277, "2, 0, (ctypes.c_uint * 1)()"),
    _raw("outliving its parent", "kernel", 157, 167, "1, 0, 0, 0, 0"),
    Attack(
        "calls under another ABI",
        "kernel",
        _CALL + "if _x86: escaped(call(0x40000000 + 41, 0, 2, 1, 0))",
        ends=("killed",),
        bare=False,
    ),
    _try("typing into the terminal", "kernel", "import fcntl\nattempt(fcntl.ioctl, 0, 0x5412, b'x')", bare=False),
]

ATTACKS = [*_PROCESSES, *_TIME, *_OUTPUT, *_MEMORY, *_FILES, *_OTHERS, *_NETWORK, *_KERNEL]
