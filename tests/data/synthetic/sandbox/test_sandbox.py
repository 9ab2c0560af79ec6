"""Programs in the sandbox behave as elsewhere, limits are told apart, and what breaks is replaced."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attacking import descendants
from support.sandboxes import sandbox_or_skip

from isthmus.data.synthetic.sandbox import probe, seccomp, slot, syscalls
from isthmus.data.synthetic.sandbox.job import Ended, Job, Limits, Outcome
from isthmus.data.synthetic.sandbox.languages import LANGUAGES, find, present
from isthmus.data.synthetic.sandbox.pool import Sandbox
from isthmus.errors import UserError


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip([name for name in present() if name != "python"], slots=2) as opened:
        yield opened


def run(sandbox: Sandbox, code: str, language: str = "python", **rest: object) -> Outcome:
    main = f"main{LANGUAGES[language].suffix}"
    files = {main: textwrap.dedent(code).encode()}
    return sandbox.run(Job(language=language, main=main, files=files, **rest))  # type: ignore[arg-type]


PROGRAMS = {
    "prints": "print('hello', 1 + 1)",
    "raises": "def f():\n    raise ValueError('no')\nf()",
    "exits": "import sys\nprint('before')\nsys.exit(3)",
    "exits with words": "import sys\nsys.exit('words')",
    "raises SystemExit of nothing": "raise SystemExit",
    "does not parse": "x = (",
    "ends late": "import atexit\natexit.register(print, 'last')\nimport threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()",
    "is main": "import sys\nprint(__name__, sys.argv[1:], __doc__, sys.modules['__main__'].__dict__['__name__'])",
    "imports beside itself": "import other\nprint(other.x)",
    "reads": "import sys\nprint(sys.stdin.read()[::-1])",
    "aborts": "import os\nprint('x', flush=True)\nos.abort()",
    "writes bytes": "import sys\nsys.stdout.buffer.write(b'\\xff\\n')",
    "says utf-8": "print('\\u00e9\\u4e2d')",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_python_behaves_as_in_a_process_of_its_own(sandbox: Sandbox, name: str, tmp_path: Path) -> None:
    files = {"main.py": PROGRAMS[name], "other.py": "x = 5"}
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    bare = subprocess.run(
        [sys.executable, "-X", "utf8", str(tmp_path / "main.py"), "a", "b"],
        input=b"abc",
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
        env={},
    )
    contents = {file: content.encode() for file, content in files.items()}
    job = Job(language="python", main="main.py", files=contents, arguments=("a", "b"), stdin=b"abc")
    outcome = sandbox.run(job)
    assert (outcome.code, outcome.stdout) == (bare.returncode, bare.stdout)
    assert outcome.stderr == bare.stderr.replace(str(tmp_path).encode(), b"/scratch")


@pytest.mark.parametrize("language", [name for name in present() if name != "python"])
def test_other_languages_run(sandbox: Sandbox, language: str) -> None:
    programs = {
        "perl": 'my $x = <STDIN>; print "got $x"; print STDERR "e"; exit 4;',
        "javascript": 'process.stdout.write("got " + require("fs").readFileSync(0)); '
        'process.stderr.write("e"); process.exitCode = 4;',
        "php": '<?php echo "got ", fgets(STDIN); fwrite(STDERR, "e"); exit(4);',
        "lua": 'io.write("got ", io.read("a")) io.stderr:write("e") os.exit(4)',
    }
    outcome = run(sandbox, programs[language], language, stdin=b"this\n")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (4, b"got this\n", b"e")


def test_limits_are_told_apart(sandbox: Sandbox) -> None:
    quick = Limits(wall_seconds=0.4)
    assert run(sandbox, "import time; time.sleep(9)", limits=quick).ended is Ended.wall_clock
    spinning = run(sandbox, "while True: pass", limits=Limits(cpu_seconds=1, wall_seconds=300))
    assert (spinning.ended, spinning.code) == (Ended.killed, -signal.SIGXCPU)
    assert spinning.cpu_seconds > 0.9
    flood = run(sandbox, "print('x' * 500_000)", limits=Limits(output_bytes=1000))
    assert (flood.ended, len(flood.stdout)) == (Ended.output, 1000), flood
    exact = run(sandbox, "print('x' * 999)", limits=Limits(output_bytes=1000))
    assert (exact.ended, len(exact.stdout)) == (Ended.exited, 1000)
    held = run(sandbox, "x = bytearray(40 << 20)", limits=Limits(memory_bytes=100 << 20))
    assert held.succeeded
    assert held.memory_bytes > 40 << 20
    many = "import os\nps = [os.fork() for _ in range(2)]\nos._exit(0) if 0 in ps else print(len(ps), flush=True)"
    assert run(sandbox, many, limits=Limits(processes=8)).stdout == b"2\n"


def test_a_program_that_was_started_may_not_be_killed_by_signals_it_handles(sandbox: Sandbox) -> None:
    caught = run(sandbox, "import os, signal\nsignal.signal(15, lambda *_: print('caught'))\nos.kill(os.getpid(), 15)")
    assert caught.stdout == b"caught\n"
    died = run(sandbox, "import os\nos.kill(os.getpid(), 15)")
    assert (died.ended, died.code) == (Ended.killed, -15)


def test_a_large_input_arrives_and_results_come_back(sandbox: Sandbox) -> None:
    content = os.urandom(3 << 20)
    code = "import hashlib, os, sys\nos.write(3, hashlib.sha256(sys.stdin.buffer.read()).digest())"
    import hashlib

    assert run(sandbox, code, stdin=content).result == hashlib.sha256(content).digest()


def test_a_slot_that_dies_is_replaced() -> None:
    with sandbox_or_skip(slots=1) as sandbox:
        (before,) = sandbox.processes()
        os.kill(descendants(before)[0], signal.SIGKILL)  # the zygote
        assert run(sandbox, "print(1)").stdout == b"1\n"
        assert sandbox.processes() != [before]


def test_nothing_is_left_when_the_owner_is_killed(tmp_path: Path) -> None:
    sandbox_or_skip(slots=1).close()
    code = (
        "import sys\nfrom isthmus.data.synthetic.sandbox.pool import Sandbox\n"
        "from isthmus.data.synthetic.sandbox.job import Job, Limits\n"
        "s = Sandbox(slots=1)\ns.open()\nprint(*s.processes(), flush=True)\n"
        "s.run(Job(language='python', main='m.py', files={'m.py': b'import time; time.sleep(60)'}, "
        "limits=Limits(wall_seconds=60)))"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    launcher = int(owner.stdout.readline())
    for _ in range(200):
        if len(family := descendants(launcher)) >= 4:  # zygote, watcher, first process, program
            break
        time.sleep(0.05)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert len(family) >= 4
    for _ in range(200):
        alive = [process for process in (launcher, *family) if Path(f"/proc/{process}").exists()]
        if not alive:
            break
        time.sleep(0.05)
    assert alive == []


def test_a_machine_that_cannot_hold_it_is_refused_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox_or_skip(slots=1).close()
    monkeypatch.setattr(slot, "_map_users", lambda process: {"impossible": "Operation not permitted"})
    with pytest.raises(
        UserError, match=r"cannot be confined on this machine \(user namespaces: Operation not"
    ) as refused:
        Sandbox(slots=1).open()
    assert "\n" not in str(refused.value)
    monkeypatch.undo()
    # A wall that has fallen: a program that says so.
    fallen = probe._PROGRAM.replace("broken = []", "broken = ['network']")
    monkeypatch.setattr(probe, "_PROGRAM", fallen)
    with pytest.raises(UserError, match="not held here: network"):
        Sandbox(slots=1).open()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(UserError, match="x86-64 or aarch64"):
        Sandbox(slots=1)


def test_an_unknown_or_absent_language_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'cobol' is unknown"):
        find("cobol")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"no lua5\.4 or"):
        find("lua")


def test_files_stay_in_the_scratch_folder() -> None:
    for name in ("/etc/x", "../x", "a/../../x", ""):
        with pytest.raises(ValueError, match="no path inside"):
            Job(language="python", main="m.py", files={"m.py": b"", name: b""})


def test_the_numbers_of_system_calls_are_the_kernels() -> None:
    headers = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }
    checked = 0
    for machine, header in headers.items():
        if not header.exists():
            continue
        found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", header.read_text())
        known = {{"fstatat": "newfstatat"}.get(name, name): int(number) for name, number in found}
        tables = {**syscalls.allowed(machine), **syscalls.checked(machine), **syscalls.own(machine)}
        newer = set(tables) - set(known)
        assert newer <= {"futex_waitv"}
        assert {name: number for name, number in tables.items() if name in known} == {
            name: known[name] for name in tables if name in known
        }
        checked += 1
    if not checked:
        pytest.skip("no kernel headers on this machine")


class Filter:
    """Runs a BPF program on a call, as the kernel would (only the instructions that it uses)."""

    def __init__(self, program: bytes) -> None:
        self.instructions = [
            (int.from_bytes(program[at : at + 2], "little"), program[at + 2], program[at + 3],
             int.from_bytes(program[at + 4 : at + 8], "little"))
            for at in range(0, len(program), 8)
        ]  # fmt: skip

    def __call__(self, number: int, architecture: int, arguments: tuple[int, ...] = ()) -> int:
        words = {0: number, 4: architecture}
        for place, argument in enumerate(arguments):
            words[16 + 8 * place] = argument & 0xFFFFFFFF
        at, accumulator = 0, 0
        while True:
            code, if_true, if_false, value = self.instructions[at]
            at += 1
            if code == 0x20:
                accumulator = words.get(value, 0)
            elif code == 0x06:
                return value
            else:
                holds = {
                    0x15: accumulator == value,
                    0x25: accumulator > value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }[code]
                at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@settings(deadline=None, max_examples=60)
@given(number=st.integers(0, 600), argument=st.integers(0, 2**32 - 1), processes=st.booleans())
def test_the_filter_allows_what_is_listed_and_nothing_else(
    machine: str, number: int, argument: int, processes: bool
) -> None:
    apply = Filter(seccomp.program(processes=processes, machine=machine))
    native = syscalls.audit_architecture(machine)
    answer = apply(number, native, (argument,) * 6)
    names = {value: name for name, value in syscalls.checked(machine).items()}
    if number in syscalls.allowed(machine).values():
        assert answer == 0x7FFF0000
    elif number not in names:
        assert answer == 0x00050000 | (38 if number > 450 else 1)  # ENOSYS, EPERM
    assert apply(number, 0x40000003) == 0x80000000  # i386
    assert apply(number | 0x40000000, native) == 0x80000000


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_looks_at_arguments(machine: str) -> None:
    numbers, native = syscalls.checked(machine), syscalls.audit_architecture(machine)
    alone, several = (Filter(seccomp.program(processes=value, machine=machine)) for value in (False, True))
    allowed, eagain, eperm, eacces = 0x7FFF0000, 0x5000B, 0x50001, 0x5000D
    thread, fork = 0x3D0F00, 0x01200011
    assert alone(numbers["clone"], native, (thread,)) == allowed
    assert alone(numbers["clone"], native, (fork,)) == eagain
    assert several(numbers["clone"], native, (fork,)) == allowed
    for flag in (0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x02000000):
        assert several(numbers["clone"], native, (fork | flag,)) == eperm
        assert alone(numbers["clone"], native, (thread | flag,)) == eperm
    private, shared, down = 0x22, 0x21, 0x122
    assert alone(numbers["mmap"], native, (0, 4096, 3, private)) == allowed
    assert alone(numbers["mmap"], native, (0, 4096, 3, shared)) == eacces
    assert alone(numbers["mmap"], native, (0, 4096, 3, down)) == eacces
    assert alone(numbers["socketpair"], native, (1,)) == allowed
    assert alone(numbers["socketpair"], native, (2,)) == eacces
    assert alone(numbers["prlimit64"], native, (0,)) == allowed
    assert alone(numbers["prlimit64"], native, (1,)) == eperm


def test_no_installed_package_of_any_python_can_be_seen(sandbox: Sandbox) -> None:
    folders = [
        str(folder)
        for path in find("python").reads
        for pattern in ("*-packages", "python3*/*-packages")
        for folder in Path(path).glob(pattern)
        if folder.name in ("site-packages", "dist-packages")
    ]
    assert folders
    outcome = run(sandbox, f"import os\nprint([os.listdir(folder) for folder in {folders}])")
    assert outcome.stdout.decode() == f"{[[]] * len(folders)}\n", outcome.stderr
