"""Who is asked when: windows, batches, budgets, and what happens when something gives up."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from isthmus.data.synthetic.budget import Budget
from isthmus.data.synthetic.config import BudgetConfig, GeneratorConfig, SamplingConfig
from isthmus.data.synthetic.journal import Journal, Refused, Spent
from isthmus.data.synthetic.journey import MAIN, Journey, Rules, journey
from isthmus.data.synthetic.protocols import (
    Candidate,
    Completion,
    Item,
    Prompt,
    Request,
    Unanswerable,
    Verdict,
    ask_once,
)
from isthmus.data.synthetic.scheduler import Scheduler
from isthmus.errors import UserError


class Echo:
    """Says the item's number, or fails as its script says."""

    name = fingerprint = "echo"

    def __init__(self, parallel: int = 2, batch: int = 1, script: dict[str, Exception] | None = None) -> None:
        self.parallel, self.batch = parallel, batch
        self.script = script or {}
        self.asked: list[list[str]] = []
        self.stopped = False

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked.append([f"{request.item.id}:{request.prompt.purpose}" for request in requests])
        for request in requests:
            if error := self.script.get(request.item.id):
                raise error
        return [Completion(f"{request.item.id} {request.prompt.purpose}", 2, 3, "stop") for request in requests]

    def stop(self) -> None:
        self.stopped = True


class Even:
    """Lets even items pass, and odd ones after a repair."""

    name = "even"
    version = 1

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        assert candidate.repairs == candidate.text.count("repair")
        ok = int(item.id) % 2 == 0 or candidate.repairs > 0
        return Verdict(ok, "" if ok else "odd", {"stderr": f"trace {item.id}"})


class Fake:
    name = "fake"
    version = 1
    verifiers = (Even(),)

    def items(self) -> Iterator[Item]:
        return (Item(str(number), f"topic {number % 3}", {"n": number}, {"secret": number}) for number in range(10**9))

    def write(self, task):  # type: ignore[no-untyped-def]
        return ask_once(Prompt((("user", str(task["n"])),)))

    def repair(self, task, text: str, verdict: Verdict) -> Prompt:  # type: ignore[no-untyped-def]
        assert verdict.details["stderr"] == f"trace {task['n']}", "what went wrong is what the repair round is told"
        return Prompt((("user", f"{text}: {verdict.details['stderr']}"),), purpose="repair")

    def document(self, item: Item, text: str) -> str:
        return f"<{text}>"

    def template(self, item, prompt, random) -> str:  # type: ignore[no-untyped-def]
        raise NotImplementedError


def rules(**more: int) -> Rules:
    values = {"seed": 0, "candidates": 1, "keep": 1, "repairs": 1, **more}
    return Rules(
        recipe=Fake(),
        verifiers=Fake.verifiers,
        panel=None,
        sampling=SamplingConfig(),
        fingerprints={MAIN: "echo"},
        **values,
    )


def drive(
    folder: Path, generator: Echo, count: int, *, window: int = 4, budget: BudgetConfig | None = None, **more: int
) -> tuple[bool, list[dict]]:
    journal = Journal(folder / "journal")
    limits = Budget(budget or BudgetConfig(), {MAIN: GeneratorConfig()}, journal.spent)
    scheduler = Scheduler(
        {MAIN: generator}, journal, limits, window=window, checkers=2, on_outcome=lambda number, outcome: None
    )

    def journeys() -> Iterator[tuple[int, Journey]]:
        for number, item in zip(range(count), Fake().items(), strict=False):
            if not journal.done(number, item.id):
                yield number, journey(number, item, rules(**more))

    try:
        return scheduler.run(journeys()), list(journal.finished(count))
    finally:
        journal.close()


@pytest.mark.parametrize(("parallel", "batch"), [(0, 1), (1, 1), (5, 1), (1, 3)])
def test_however_they_are_asked_the_outcomes_are_the_same(parallel: int, batch: int, tmp_path: Path) -> None:
    generator = Echo(parallel, batch)
    finished, outcomes = drive(tmp_path, generator, 9)
    assert finished
    assert [outcome["item"] for outcome in outcomes] == [str(number) for number in range(9)]
    assert sum(map(len, generator.asked)) == 9 + 4
    for number, outcome in enumerate(outcomes):
        (entry,) = outcome["tries"]
        assert entry["stage"] == "accepted"
        assert entry["repairs"] == number % 2
        assert entry["first"] == ("even: odd" if number % 2 else "")
        assert entry["text"] == f"<{number} {'repair' if number % 2 else 'answer'}>"
        assert [verdict["ok"] for verdict in entry["verdicts"]] == [False, True][1 - number % 2 :]
        assert (entry["prompt_tokens"], entry["completion_tokens"]) == (
            2 * len(entry["requests"]),
            3 * len(entry["requests"]),
        )
    keys = [request["key"] for outcome in outcomes for entry in outcome["tries"] for request in entry["requests"]]
    assert len(set(keys)) == len(keys) == 13


def test_batches_are_of_the_lowest_items_and_full_while_there_are_enough(tmp_path: Path) -> None:
    generator = Echo(1, 3)
    drive(tmp_path, generator, 20, window=6)
    assert generator.asked[0] == ["0:answer", "1:answer", "2:answer"]
    assert generator.asked[1] == ["1:repair", "3:answer", "4:answer"]
    assert [len(batch) for batch in generator.asked[:8]] == [3] * 8


def test_tries_end_when_enough_were_kept(tmp_path: Path) -> None:
    _, outcomes = drive(
        tmp_path / "a" if (tmp_path / "a").mkdir() is None else tmp_path, Echo(), 4, candidates=5, keep=2
    )
    assert [len(outcome["tries"]) for outcome in outcomes] == [2, 2, 2, 2]
    _, outcomes = drive(tmp_path, Echo(), 4, candidates=3, keep=1, repairs=0)
    assert [len(outcome["tries"]) for outcome in outcomes] == [1, 3, 1, 3]
    assert outcomes[1]["tries"][0]["reason"] == "even: odd"
    seeds = {entry["requests"][0]["seed"] for entry in outcomes[1]["tries"]}
    assert len(seeds) == 3


def test_a_refused_request_rejects_one_candidate(tmp_path: Path) -> None:
    _, outcomes = drive(tmp_path, Echo(script={"2": Unanswerable("filtered")}), 4)
    assert [outcome["tries"][0]["stage"] for outcome in outcomes] == ["accepted", "accepted", "generate", "accepted"]
    assert outcomes[2]["tries"][0]["reason"] == "not answered: filtered"
    again = Echo()
    _, outcomes = drive(tmp_path, again, 4)
    assert not again.asked, "it is refused for good"


def test_when_one_gives_up_the_others_are_written_down_first(tmp_path: Path) -> None:
    generator = Echo(3, script={"5": UserError("gone")})
    with pytest.raises(UserError, match="gone"):
        drive(tmp_path, generator, 20, window=8)
    assert generator.stopped
    answered = sum(map(len, generator.asked)) - generator.asked.count(["5:answer"])
    again = Echo(3)
    finished, _ = drive(tmp_path, again, 20, window=8)
    assert finished
    assert answered + sum(map(len, again.asked)) == 30


@pytest.mark.parametrize(
    ("budget", "most"),
    [(BudgetConfig(requests=7), 7), (BudgetConfig(tokens=1024 + 60), 0), (BudgetConfig(tokens=5), 0)],
)
def test_a_budget_is_never_passed_and_a_larger_one_goes_on(budget: BudgetConfig, most: int, tmp_path: Path) -> None:
    generator = Echo(4)
    finished, _ = drive(tmp_path, generator, 12, budget=budget)
    assert not finished
    spent = Journal(tmp_path / "journal").spent
    if budget.requests:
        assert spent.requests == most
    else:
        assert spent.tokens <= (budget.tokens or 0)
    finished, outcomes = drive(tmp_path, Echo(4), 12)
    assert finished
    assert len(outcomes) == 12


def test_what_is_set_aside_is_given_back() -> None:
    budget = Budget(BudgetConfig(tokens=2_000), {MAIN: GeneratorConfig(prompt_price=1e6)}, Spent())
    request = Request("k", Item("1", "t", {}), Prompt((("user", "x" * 300),)), 1, 1_000, 1.0, 1.0, ())
    assert budget.reserve(MAIN, request)
    assert not budget.reserve(MAIN, request), "108 + 1000 are set aside"
    assert budget.settle(MAIN, request, Completion("", 10, 20, "stop")) == pytest.approx(10.0)
    assert budget.reserve(MAIN, request)
    assert budget.settle(MAIN, request, Refused("filtered", 1, 2)) == 1.0
    assert budget.reserve(MAIN, request)


@pytest.mark.parametrize(("parallel", "batch"), [(0, 1), (4, 1), (1, 4)])
def test_what_finds_no_room_waits_for_the_answers_under_way(parallel: int, batch: int, tmp_path: Path) -> None:
    """One request may take over a thousand tokens and takes five: a budget for two at a time is enough for all."""
    finished, outcomes = drive(tmp_path, Echo(parallel, batch), 12, budget=BudgetConfig(tokens=1_040 * 2))
    assert finished
    assert len(outcomes) == 12


@pytest.mark.parametrize("quick", [False, True])
def test_a_verifier_that_fails_costs_one_candidate(
    quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(self: Even, item: Item, candidate: Candidate) -> Verdict:
        if item.id == "2":
            raise RecursionError("too deep")
        return Verdict(True)

    monkeypatch.setattr(Even, "check", check)
    monkeypatch.setattr(Even, "quick", quick, raising=False)
    finished, outcomes = drive(tmp_path, Echo(), 4, repairs=0)
    assert finished
    assert [outcome["tries"][0]["reason"] for outcome in outcomes] == ["", "", "even: cannot be checked", ""]

    def give_up(self: Even, item: Item, candidate: Candidate) -> Verdict:
        raise UserError("install it")

    monkeypatch.setattr(Even, "check", give_up)
    with pytest.raises(UserError, match="install it"):
        drive(tmp_path, Echo(), 6, repairs=0)
