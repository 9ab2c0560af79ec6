"""What a sandboxed run costs beside a bare process, and how well frozen tests tell right from wrong."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

PROGRAMS = {
    "python": "print(sum(range(1000)))",
    "perl": "my $s = 0; $s += $_ for 0..999; print $s;",
    "javascript": "let s = 0; for (let i = 0; i < 1000; i++) s += i; console.log(s);",
    "php": "<?php $s = 0; for ($i = 0; $i < 1000; $i++) $s += $i; echo $s;",
    "lua": "local s = 0 for i = 0, 999 do s = s + i end print(s)",
}


def sandbox(runs: int = 60) -> dict[str, Any]:
    """Time runs of a small program in turn: a bare process, the sandbox; then many at once."""
    from isthmus.data.synthetic.sandbox.job import Job
    from isthmus.data.synthetic.sandbox.languages import LANGUAGES, find, present
    from isthmus.data.synthetic.sandbox.pool import Sandbox

    found: dict[str, Any] = {}
    languages = [name for name in PROGRAMS if name in present()]
    began = time.perf_counter()
    with Sandbox(languages) as opened, tempfile.TemporaryDirectory() as folder:
        found["opening and probing, ms"] = round(1e3 * (time.perf_counter() - began), 1)
        for language in languages:
            name = f"main{LANGUAGES[language].suffix}"
            path = Path(folder, name)
            path.write_text(PROGRAMS[language])
            job = Job(language=language, main=name, files={name: path.read_bytes()})
            command = [find(language).command, str(path)]
            bare, inside = [], []
            spent = {"bare process": 0.0, "sandbox": 0.0}
            zygotes = _zygote_seconds(opened.processes())
            for _ in range(runs):
                before = sum(os.times()[:4])
                began = time.perf_counter()
                subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=True, env={})
                bare.append(time.perf_counter() - began)
                spent["bare process"] += sum(os.times()[:4]) - before
                before = time.process_time()
                began = time.perf_counter()
                assert opened.run(job).succeeded
                inside.append(time.perf_counter() - began)
                spent["sandbox"] += time.process_time() - before
            time.sleep(0.2)  # until the last run's processes have been waited for
            spent["sandbox"] += _zygote_seconds(opened.processes()) - zygotes
            found[language] = {"CPU ms": {who: round(1e3 * seconds / runs, 1) for who, seconds in spent.items()}}
            # On a busy machine the fastest run says what it costs, the median what one waits for.
            for which, of in (("median", statistics.median), ("fastest", min)):
                one, other = of(bare), of(inside)
                found[language][which] = {
                    "bare process, ms": round(1e3 * one, 2),
                    "sandbox, ms": round(1e3 * other, 2),
                    "ratio": round(other / one, 2),
                    "more, ms": round(1e3 * (other - one), 2),
                }
        job = Job(language="python", main="main.py", files={"main.py": PROGRAMS["python"].encode()})
        cores = len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(cores) as threads:
            list(threads.map(opened.run, [job] * cores))
            began = time.perf_counter()
            list(threads.map(opened.run, [job] * 4 * runs))
            found["executions per second, one slot a core"] = round(4 * runs / (time.perf_counter() - began))
    return found


def _zygote_seconds(launchers: list[int]) -> float:
    """Return the CPU time of what has run under launchers, and of their zygotes, to 10 ms."""
    from support.attacking import descendants

    total = 0
    for launcher in launchers:
        zygote = descendants(launcher)[0]
        fields = Path(f"/proc/{zygote}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))  # proc(5): utime, stime, cutime, cstime
    return total / os.sysconf("SC_CLK_TCK")


def verifiers(rounds: int = 12) -> dict[str, Any]:
    """Label mutants of solutions by 1000 tests, and count what the frozen ones say of them."""
    import itertools

    from support.labelled import CHEATS, label, mutants

    from isthmus.data.synthetic.code.tasks import TOPICS
    from isthmus.data.synthetic.context import Context
    from isthmus.data.synthetic.protocols import Candidate
    from isthmus.data.synthetic.recipes.code import CodeOptions, CodeRecipe
    from isthmus.data.synthetic.sandbox.job import Limits
    from isthmus.data.synthetic.sandbox.pool import Sandbox
    from isthmus.data.synthetic.verifiers.execution import PassesTests

    recipe = CodeRecipe(CodeOptions(), Context(18, lambda: iter(())))
    counts = {"right": 0, "right accepted": 0, "wrong": 0, "wrong accepted": 0}
    accepted_wrongly = []
    limits = Limits(cpu_seconds=1, wall_seconds=120, memory_bytes=128 << 20)
    with Sandbox() as opened, ThreadPoolExecutor(2) as threads:
        tests = PassesTests(opened, limits)

        def work(item: Any) -> list[tuple[str, bool, bool]]:
            solution = item.frozen["solution"]
            changed = list(mutants(solution, Random(item.id), 5))
            cheats = [code.replace("{f}", item.task["function"]) for code in CHEATS.values()]
            chosen = Random(item.id).sample(cheats, 2)
            labels = [True, *label(tests, item.topic, item, changed), False, False]
            answers = [solution, *changed, *chosen]
            return [
                (answer, right, tests.check(item, Candidate(answer)).ok)
                for answer, right in zip(answers, labels, strict=True)
            ]

        for rows in threads.map(work, itertools.islice(recipe.items(), rounds * len(TOPICS))):
            for answer, right, accepted in rows:
                name = "right" if right else "wrong"
                counts[name] += 1
                counts[f"{name} accepted"] += accepted
                if accepted and not right:
                    accepted_wrongly.append(answer)
    recipe.verifiers[1].close()  # type: ignore[attr-defined]
    total = counts["right"] + counts["wrong"]
    errors = counts["right"] - counts["right accepted"] + counts["wrong accepted"]
    return {**counts, "accuracy": round(1 - errors / total, 5), "accepted wrongly": accepted_wrongly}
