"""A synthesis that is killed anywhere and started again gives what it would have given, and asks nothing twice."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.recipes import HTTP, result, run, scripted_model, write_recipe
from support.scripted_server import ScriptedServer, many_faults

from isthmus.data.synthetic.protocols import Completion
from isthmus.errors import UserError


def _command(path: Path, out: Path, *words: str) -> list[str]:
    names = ["data", "synthesize", f"data={path}", f"out={out}", "workers=1", *words]
    return [sys.executable, "-m", "isthmus.launch.cli", *names]


@pytest.mark.parametrize("recipe", ["rephrase", "long_context"])
def test_kill_9_and_resume_is_identical_and_no_request_is_repeated(recipe: str, tmp_path: Path) -> None:
    plain = write_recipe(tmp_path, recipe)
    model = scripted_model(plain)
    with ScriptedServer(model, many_faults) as server:
        path = write_recipe(tmp_path, recipe, HTTP.format(url=server.url, parallel=1))
        reference = run(path, tmp_path / "reference")
    processes: list[subprocess.Popen[bytes]] = []

    def kill(number: int) -> None:
        if number == 17 and processes:
            os.kill(processes[-1].pid, signal.SIGKILL)
            processes[-1].wait()

    with ScriptedServer(model, many_faults, kill) as server:
        path = write_recipe(tmp_path, recipe, HTTP.format(url=server.url, parallel=1))
        processes.append(subprocess.Popen(_command(path, tmp_path / "killed"), stdout=subprocess.DEVNULL))
        assert processes[0].wait(timeout=300) == -signal.SIGKILL
        answered = dict(server.answered)
        resumed = run(path, tmp_path / "killed")
    assert 0 < len(answered) < reference.spent.requests
    assert max(server.answered.values()) == 1, "an answer was asked for twice"
    assert all(server.attempts[key] <= 3 for key in answered)
    assert resumed.spent == reference.spent
    assert result(tmp_path / "killed") == result(tmp_path / "reference")


def test_a_server_that_goes_away_ends_it_in_good_order_and_it_goes_on(tmp_path: Path) -> None:
    plain = write_recipe(tmp_path, "mathematics")
    model = scripted_model(plain)
    dead = {"after": 9}

    def fault(key: str, attempt: int) -> str:
        dead["after"] -= 1
        return "503" if dead["after"] < 0 else ""

    with ScriptedServer(model, fault) as server:
        path = write_recipe(tmp_path, "mathematics", HTTP.format(url=server.url, parallel=3))
        with pytest.raises(UserError, match="no answer after 2 attempts, the last: status 503"):
            run(path, tmp_path / "out", "data.generator.attempts=2")
        before = dict(server.answered)
        dead["after"] = 10**9
        outcome = run(path, tmp_path / "out", "data.generator.attempts=2")
    assert len(before) == 9
    assert max(server.answered.values()) == 1
    assert outcome.finished


def test_a_budget_ends_it_in_good_order_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    plain = write_recipe(tmp_path, "mathematics")
    prices = "prompt_price: 1.0, completion_price: 2.0, "
    with ScriptedServer(scripted_model(plain)) as server:
        more = HTTP.format(url=server.url, parallel=2).replace("kind: http, ", f"kind: http, {prices}")
        path = write_recipe(tmp_path, "mathematics", more, "budget: {requests: 10}\n")
        first = run(path, tmp_path / "out")
        assert not first.finished
        assert first.spent.requests == 10 == sum(server.answered.values())
        costly = run(
            path, tmp_path / "out", "data.budget.requests=null", f"data.budget.cost={first.spent.cost + 0.004}"
        )
        assert not costly.finished
        assert first.spent.cost < costly.spent.cost <= first.spent.cost + 0.004
        last = run(path, tmp_path / "out", "data.budget.requests=null")
    assert last.finished
    assert last.statistics.items == 24
    assert max(server.answered.values()) == 1
    tokens = last.spent.prompt_tokens * 1.0 + last.spent.completion_tokens * 2.0
    assert last.spent.cost == pytest.approx(tokens / 1e6)


class CountedSampler:
    """A checkpoint whose every batch is written down; it can be cut off."""

    fingerprint = "counted"

    def __init__(self, batches: int) -> None:
        self._left = batches
        self.batches: list[tuple[tuple[str, ...], tuple[int, ...]]] = []

    def complete(self, prompts, *, max_tokens, temperature, top_p, stop, seeds):  # type: ignore[no-untyped-def]
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self.batches.append((tuple(prompts), tuple(seeds)))
        # Half of the answers are wrong, so that repairs and second tries mix with first ones.
        return [Completion(f"{seed % 2} of it. Answer: {seed % 7}", 5, 7, "stop") for seed in seeds]


def test_a_checkpoint_forms_the_same_batches_after_a_kill(tmp_path: Path) -> None:
    more = (
        "generator: {kind: checkpoint, path: here, batch: 5}\ncandidates: 3\noptions: {kinds: [ordering, remainder]}\n"
    )
    path = write_recipe(tmp_path, "mathematics", more)

    def attempt(out: str, batches: int) -> CountedSampler:
        sampler = CountedSampler(batches)
        with contextlib.suppress(UserError, KeyboardInterrupt):
            run(path, tmp_path / out, open_sampler=lambda name: sampler)
        return sampler

    whole = attempt("whole", 10**6)
    first = attempt("cut", 7)
    rest = attempt("cut", 10**6)
    assert len(first.batches) == 7
    assert first.batches + rest.batches == whole.batches
    assert max(len(prompts) for prompts, _ in whole.batches) == 5
    assert len(whole.batches) > 20
