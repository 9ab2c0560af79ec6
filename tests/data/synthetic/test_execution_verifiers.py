"""Verifiers that execute: of a labelled set no wrong answer is accepted and no right one refused, nor any cheat."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from support.labelled import CHEATS, label, mutants
from support.sandboxes import sandbox_or_skip

from isthmus.data.synthetic.code.tasks import TOPICS
from isthmus.data.synthetic.code.tests import Test, encode, equal, read_assertion, too_weak
from isthmus.data.synthetic.code.text import code_of
from isthmus.data.synthetic.context import Context
from isthmus.data.synthetic.protocols import Candidate, Item, Prompt
from isthmus.data.synthetic.recipes.code import CodeOptions, CodeRecipe, explain
from isthmus.data.synthetic.recipes.translation import TranslationOptions, TranslationRecipe
from isthmus.data.synthetic.sandbox.job import Limits
from isthmus.data.synthetic.sandbox.languages import present
from isthmus.data.synthetic.sandbox.pool import Sandbox
from isthmus.data.synthetic.verifiers.execution import Parses, PassesTests, _shown
from isthmus.errors import UserError

pytest.importorskip("pyflakes", reason="the linter comes with the extra `synthetic`")
LIMITS = Limits(cpu_seconds=1, wall_seconds=120, memory_bytes=128 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with sandbox_or_skip(slots=2) as opened:
        yield opened


@pytest.fixture
def context() -> Context:
    return Context(5, lambda: iter(()))


def items_of_topics(count: int, context: Context) -> list[Item]:
    sandbox_or_skip(slots=1).close()
    recipe = CodeRecipe(CodeOptions(), context)
    items = list(itertools.islice(recipe.items(), count))
    for verifier in recipe.verifiers:
        getattr(verifier, "close", lambda: None)()
    return items


def test_no_wrong_answer_is_accepted_and_no_right_one_refused(sandbox: Sandbox, context: Context) -> None:
    tests = PassesTests(sandbox, LIMITS)
    wrong = right = 0

    def work(item: Item) -> tuple[list[str], list[bool], list[bool]]:
        solution = item.frozen["solution"]
        answers = [solution, f"Here it is:\n```python\n{solution}```\nDone.", *mutants(solution, Random(item.id), 3)]
        labels = [True, True, *label(tests, item.topic, item, answers[2:])]
        return answers, labels, [tests.check(item, Candidate(answer)).ok for answer in answers]

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(work, items_of_topics(len(TOPICS), context)))
    for answers, labels, verdicts in results:
        for answer, is_right, accepted in zip(answers, labels, verdicts, strict=True):
            assert accepted == is_right, f"{'refused' if is_right else 'accepted'}:\n{answer}"
        right += sum(labels)
        wrong += len(labels) - sum(labels)
    assert right >= 32
    assert wrong >= 30


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_are_rejected(sandbox: Sandbox, context: Context, name: str) -> None:
    (item,) = items_of_topics(1, context)
    verdict = PassesTests(sandbox, LIMITS).check(item, Candidate(CHEATS[name].replace("{f}", item.task["function"])))
    assert not verdict.ok, name
    assert set(verdict.details) >= {"stdout", "stderr", "returncode"}
    expected = json.dumps(item.frozen["tests"])
    assert json.dumps(item.frozen["tests"][0][1]) != explain(verdict)
    assert expected not in explain(verdict)


def test_what_depends_on_earlier_calls_is_rejected(sandbox: Sandbox) -> None:
    """Right in one order of calls, wrong in the other."""
    code = "seen = []\n\n\ndef f(x):\n    seen.append(x)\n    return x + 1 if seen == sorted(seen) else 0\n"
    item = Item("a", "a", {"function": "f"}, {"tests": [Test([n], n + 1).to_json() for n in range(5)]})
    assert not PassesTests(sandbox, LIMITS).check(item, Candidate(code)).ok
    assert PassesTests(sandbox, LIMITS).check(item, Candidate("def f(x):\n    return x + 1\n")).ok


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(x):\n    return x\n", ""),
        ("", "no code"),
        ("def f(x:\n", "does not parse"),
        ("(" * 3000, "does not parse"),
        ("def g(x):\n    return x\n", "lacks the function"),
        ("import os\n\n\ndef f(x):\n    return x\n", "lint"),
        ("def f(x):\n    return y\n", "lint"),
        ("x = 1\0", "does not parse"),
        (f"def f(x):\n    return {' + '.join(['x'] * 900)}\n", "nested too deeply"),
    ],
)
def test_parsing_and_lint(code: str, reason: str) -> None:
    verdict = Parses().check(Item("a", "a", {"function": "f"}), Candidate(code))
    assert (verdict.ok, verdict.reason) == (not reason, reason)


def test_values_are_told_apart() -> None:
    values = [
        None, True, False, 0, 1, -1, 2.5, float("inf"), "", "1", [], [1], [1, 2], [True], (), (1,), {1}, set(), {},
        {1: 2}, {"1": 2}, [[1], 2], [(1,), 2], frozenset({1, 2}),
    ]  # fmt: skip
    for one, other in itertools.product(values, values):
        same = json.loads(json.dumps(encode(one)))
        assert equal(same, json.loads(json.dumps(encode(other)))) == (one is other), (one, other)
    assert equal(encode({1: 2, 3: 4}), encode({3: 4, 1: 2}))
    assert equal(0.1 + 0.2, 0.3)
    assert not equal(0.31, 0.3)
    assert equal(0.31, 0.3, 0.1)
    assert not equal(10**400, 1.5)


def test_what_only_looks_like_a_value_is_wrong_and_no_error() -> None:
    """A candidate can write anything where its results are read."""
    for odd in ({"dict": 5}, {"dict": [5]}, {"dict": [[]]}, {"x": 5}, {"tuple": 5}, {"set": None}):
        assert not equal(odd, encode({1: 2}))
        assert not equal([odd], encode([{1, 2}]))
        assert _shown(odd)
    assert _shown({"dict": 5}) == _shown([{"x": 5}]) == "no value"
    assert _shown({"dict": [[1, {"tuple": [2]}]]}) == "{1: (2,)}"
    assert equal(encode(float("nan")), encode(float("nan")))
    with pytest.raises(ValueError, match="a object cannot be compared"):
        encode(object())


@pytest.mark.parametrize(
    ("line", "arguments", "expected", "tolerance"),
    [
        ("assert f(1, [2]) == {'a': 3}", [1, [2]], {"dict": [["a", 3]]}, None),
        ("assert f((1,)) is None", [{"tuple": [1]}], None, None),
        ("assert f(-2)", [-2], True, None),
        ("assert not f('x')", ["x"], False, None),
        ("assert abs(f(2) - 1.5) < 1e-3", [2], 1.5, 1e-3),
    ],
)
def test_assertions_become_data(line: str, arguments: list[object], expected: object, tolerance: float | None) -> None:
    assert read_assertion(line, "f", "here") == Test(arguments, expected, tolerance)


@pytest.mark.parametrize(
    "line", ["f(1) == 2", "assert g(1) == 2", "assert f(x) == 2", "assert f(1) < 2", "assert", "x = 1"]
)
def test_other_tests_are_refused(line: str) -> None:
    with pytest.raises(UserError, match="is no test that can be frozen"):
        read_assertion(line, "f", "here")


def test_tests_that_prove_nothing_are_refused(tmp_path: Path, context: Context) -> None:
    assert too_weak([Test([1], 2), Test([3], 2)]) == "returning always the same"
    assert too_weak([Test([0, 1], 1), Test([3, 2], 2)]) == "returning argument 2"
    assert too_weak([Test([1], 2), Test([3], 5)]) == ""
    task = {"question": "Add one.", "function": "f", "tests": ["assert f(1) == 2", "assert f(5) == 6"], "id": "add"}
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(task))
    (item,) = CodeRecipe(CodeOptions(tasks=str(path)), context)._own or []
    assert item.frozen["tests"] == [[[1], 2, None], [[5], 6, None]]
    path.write_text(json.dumps(task | {"tests": ["assert f(1) == 2", "assert f(5) == 7"]}))
    (other,) = CodeRecipe(CodeOptions(tasks=str(path)), context)._own or []
    assert item.id.startswith("add#")
    assert other.id.startswith("add#")
    assert other.id != item.id, "an edited task does not get the outcome of the old one"
    path.write_text(json.dumps(task) + "\n" + json.dumps(task | {"question": "Add 1."}))
    with pytest.raises(UserError, match="two tasks have the same id"):
        CodeRecipe(CodeOptions(tasks=str(path)), context)
    path.write_text(json.dumps(task | {"tests": ["assert f(1) == 2", "assert f(5) == 2"]}))
    with pytest.raises(UserError, match=r"tasks.jsonl:1: its tests are passed by returning always the same"):
        CodeRecipe(CodeOptions(tasks=str(path)), context)


@pytest.mark.parametrize("text", ["x\n", "```\nx\n```", "Well:\n```python\nx\n```\nmore\n```\ny\n```", "a\n```py\nx"])
def test_code_is_found_in_answers(text: str) -> None:
    assert code_of(text) == "x\n"


@pytest.mark.parametrize("language", [name for name in present() if name != "python"])
def test_translations_are_kept_if_they_print_the_same(language: str, context: Context) -> None:
    sandbox_or_skip(slots=1).close()
    recipe = TranslationRecipe(TranslationOptions(languages=[language], parts=6), context)
    (verifier,) = recipe.verifiers
    for item in itertools.islice(recipe.items(), 2):
        right = code_of(recipe.template(item, Prompt(()), Random(1)))
        opening = "<?php " if language == "php" else ""  # what stands before it would be printed
        for code, reason in (
            (right, ""),
            (_spoiled(right, language), "prints something else"),
            (f"{opening})(", "does not parse"),
        ):
            verdict = verifier.check(item, Candidate(code))
            assert (verdict.ok, verdict.reason) == (not reason, reason)
    verifier.close()  # type: ignore[attr-defined]


def _spoiled(code: str, language: str) -> str:
    """Return the program with a last line that prints one word too many."""
    last = {"perl": 'print "x\\n";', "javascript": 'console.log("x");', "php": 'echo "x";', "lua": 'print("x")'}
    return code + last[language] + "\n"
