"""The attack suite: every attempt is contained, what it aims at is unharmed, and nothing is left behind."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.attacking import World, attempt_bare, descendants, run_attacks, world
from support.attacks import ATTACKS
from support.sandboxes import sandbox_or_skip

from isthmus.data.synthetic.sandbox.job import Job, Limits
from isthmus.data.synthetic.sandbox.languages import present
from isthmus.data.synthetic.sandbox.pool import Sandbox

HERE = [attack for attack in ATTACKS if attack.language in present()]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    languages = [language for language in ("perl", "javascript") if language in present()]
    with sandbox_or_skip(languages, slots=4) as opened:
        yield opened


@pytest.fixture
def around() -> Iterator[World]:
    with world() as made:
        yield made


def test_every_attack_is_contained(sandbox: Sandbox, around: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(HERE) >= 40
    results = run_attacks(sandbox, around, HERE)
    with capsys.disabled():
        print(f"\n{len(results)} attacks:")
        for result in results:
            print(f"  {'contained' if result.contained else 'NOT CONTAINED'}  {result.attack.name}: {result.how}")
    assert [result.attack.name for result in results if not result.contained] == []
    assert around.harm() == []
    # A launcher and its zygote for each slot; of the programs nothing is left.
    assert [len(descendants(process)) for process in sandbox.processes()] == [1] * len(sandbox.processes())


def test_attacks_succeed_without_the_sandbox(around: World) -> None:
    """A sample that works for any user; the benchmark tries all that are harmless."""
    names = {
        "fork",
        "a daemon that survives",
        "memory",
        "a file in the user's home",
        "a symbolic link",
        "inherited descriptors",
        "another's environment",
        "a local server",
        "looking for processes",
    }
    chosen = [attack for attack in HERE if attack.name in names]
    assert len(chosen) == len(names)
    with ThreadPoolExecutor(4) as threads:
        succeeded = list(threads.map(lambda attack: attempt_bare(around, attack), chosen))
    assert dict(zip((attack.name for attack in chosen), succeeded, strict=True)) == dict.fromkeys(names, True)
    assert "a socket was reached" in around.harm()


def test_a_job_sees_nothing_of_another(sandbox: Sandbox) -> None:
    """Neither of one at the same time, nor of an earlier one in the same place: no file, no process, no memory."""
    secret = b"e3b0c442" * 4
    keeps = b"import sys, time\ns = sys.stdin.read()\nopen('kept', 'w').write(s)\nprint(s)\ntime.sleep(1.5)\n"
    # A program may read its own memory: what an earlier one has left in the process it was forked from would be there.
    looks = (
        b"import ctypes, gc, os, re\nprint(os.listdir('.'))\n"
        b"for pid in range(1, 400):\n    try: os.kill(pid, 0); print('process', pid)\n"
        b"    except ProcessLookupError: pass\n"
        b"    except PermissionError: print('process', pid)\n"
        b"word = 'e3b0' + 'c442'\nfound = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple)) "
        b"and word * 4 in map(str, "
        b"o.values() if isinstance(o, dict) else o)]\nprint(len(found))\n"
    )
    limits = Limits(wall_seconds=120, cpu_seconds=5)
    keeper = Job(language="python", main="a.py", files={"a.py": keeps}, stdin=secret, limits=limits)
    looker = Job(language="python", main="b.py", files={"b.py": looks}, limits=limits)
    with ThreadPoolExecutor(5) as threads:
        kept = [threads.submit(sandbox.run, keeper) for _ in range(3)]
        time.sleep(0.3)
        beside = [threads.submit(sandbox.run, looker).result()]
        assert all(job.result().stdout.startswith(secret) for job in kept)
    after = [sandbox.run(looker) for _ in range(4)]
    for outcome in beside + after:
        assert outcome.succeeded, outcome
        assert outcome.stdout.decode().splitlines() == ["['b.py']", "process 1", "process 2", "0"]
