"""Code by rejection sampling: tasks with frozen tests, candidates that are parsed, linted, run and repaired."""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from isthmus.config import key
from isthmus.data.extras import need
from isthmus.data.synthetic.code.tasks import TOPICS
from isthmus.data.synthetic.code.tests import Test, encode, read_assertion, too_weak
from isthmus.data.synthetic.code.text import code_of, fenced
from isthmus.data.synthetic.context import Context
from isthmus.data.synthetic.protocols import Item, Prompt, Verdict, Verifier, ask_once, digest
from isthmus.data.synthetic.sandbox.job import Limits
from isthmus.data.synthetic.sandbox.pool import Sandbox
from isthmus.data.synthetic.verifiers.execution import Parses, PassesTests
from isthmus.errors import UserError

_INSTRUCTIONS = (
    "Write one Python function for the task. Use the standard library only; read no files and print nothing. "
    "Answer with the code alone, in one block between ```python and ```."
)
_OPENINGS = ("", "This is one way to do it.\n\n", "A straightforward solution:\n\n")


@dataclass(kw_only=True, slots=True)
class CodeOptions:
    topics: list[str] = key(list(TOPICS), "topics of the tasks that isthmus brings")
    tasks: str | None = key(
        None, "your own tasks instead: .jsonl with question, function, tests (assertions), and id and topic if you like"
    )
    tests: int = key(150, "tests frozen for each task of a topic")
    instructions: bool = key(True, "begin prompts with instructions; without, a model continues as documents go on")
    seconds: int = key(5, "CPU time that a candidate may take for all its tests")
    memory_bytes: int = key(256 << 20, "memory that it may take")


class CodeRecipe:
    """Each item is a task; its tests come from a solution or a file, before any model is asked."""

    name = "code"
    version = 1

    def __init__(self, options: CodeOptions, context: Context) -> None:
        self._options, self._seed = options, context.seed
        for topic in options.topics:
            if topic not in TOPICS:
                raise UserError(
                    f"there is no topic '{topic}'", where="data.options.topics", fix=f"choose of: {', '.join(TOPICS)}"
                )
        for name, least in (("tests", 3), ("seconds", 1), ("memory_bytes", 64 << 20)):
            if getattr(options, name) < least:
                raise UserError(f"is {getattr(options, name)}", where=f"data.options.{name}", fix=f"{least} or more")
        if not options.topics and options.tasks is None:
            raise UserError("is empty", where="data.options.topics", fix="name some, or give tasks")
        need("pyflakes.checker", "'isthmus[synthetic]'")
        self._own = _read_tasks(Path(options.tasks).expanduser()) if options.tasks is not None else None
        limits = Limits(
            cpu_seconds=options.seconds, wall_seconds=10.0 * options.seconds, memory_bytes=options.memory_bytes
        )
        self._sandbox = Sandbox()
        self.verifiers: Sequence[Verifier] = (Parses(), PassesTests(self._sandbox, limits))

    def items(self) -> Iterator[Item]:
        """Yield the tasks of the file, or those of the topics in turn, without end.

        Raises:
            UserError: this machine cannot run programs safely.
        """
        self._sandbox.open()
        if self._own is not None:
            yield from self._own
            return
        number = 0
        while True:
            topics = self._options.topics
            yield _of_topic(topics[number % len(topics)], number // len(topics), self._seed, self._options.tests)
            number += 1

    def write(self, task: Mapping[str, Any]) -> Generator[Sequence[Prompt], Sequence[str], str]:
        return ask_once(Prompt(self._messages(task)))

    def repair(self, task: Mapping[str, Any], text: str, verdict: Verdict) -> Prompt:
        """Show what the program did, never what it should have returned."""
        return Prompt(
            (*self._messages(task), ("assistant", text), ("user", explain(verdict))),
            purpose="repair",
        )

    def document(self, item: Item, text: str) -> str:
        return f"{_question(item.task)}\n\n{fenced(code_of(text), 'python')}"

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        if "solution" not in item.frozen:
            raise UserError("has no solutions", where="data.options.tasks", fix="use a model, or tasks with solution")
        return random.choice(_OPENINGS) + fenced(item.frozen["solution"], "python")

    def _messages(self, task: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        question = ("user", _question(task))
        return (("system", _INSTRUCTIONS), question) if self._options.instructions else (question,)


def explain(verdict: Verdict) -> str:
    """Return what a repair round is told."""
    details = verdict.details
    parts = [f"This does not work: {verdict.reason}."]
    if "call" in details:
        parts.append(f"It was run with:\n{details['call']}")
    if "got" in details:
        parts.append(f"The result, which is wrong:\n{details['got']}")
    for name, title in (("stdout", "Standard output"), ("stderr", "Standard error")):
        if details.get(name, "").strip():
            parts.append(f"{title}:\n{details[name].strip()}")
    parts.append(f"Return code: {details.get('returncode')}\n\nWrite the whole program again, corrected.")
    return "\n\n".join(parts)


def _question(task: Mapping[str, Any]) -> str:
    return f"Task: write a Python function `{task['function']}`. {task['question']}"


def _of_topic(name: str, turn: int, seed: int, count: int) -> Item:
    topic, random = TOPICS[name], Random(digest([seed, name, turn]))
    values = topic.parameters(random)
    solution = topic.solution.format(**values)
    namespace: dict[str, Any] = {}
    exec(solution, namespace)  # ours, not a model's
    while True:
        calls = [topic.arguments(random, values) for _ in range(count)]
        tests = [
            Test([encode(entry) for entry in arguments], encode(namespace[topic.function](*arguments)))
            for arguments in calls
        ]
        if not too_weak(tests):
            break
    task = {"function": topic.function, "question": topic.question.format(**values)}
    frozen = {"tests": [test.to_json() for test in tests], "solution": solution}
    return Item(f"{name.replace(' ', '-')}/{turn:07d}", name, task, frozen)


def _read_tasks(path: Path) -> list[Item]:
    """Read a user's tasks.

    Raises:
        UserError: the file cannot be read, or a task lacks something or has tests that prove too little.
    """
    try:
        content = path.read_bytes()
        rows = [json.loads(line) for line in content.decode().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=f"data.options.tasks={path}", fix="give JSON lines") from None
    parent = f"{path.name}#{hashlib.blake2b(content, digest_size=8).hexdigest()}"
    items, names = [], set[str]()
    for number, row in enumerate(rows, start=1):
        where = f"{path}:{number}"
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("question", "function")):
            raise UserError("lacks question or function", where=where, fix="give both, as texts")
        tests = row.get("tests")
        if not isinstance(tests, list) or not all(isinstance(line, str) for line in tests):
            raise UserError("lacks tests", where=where, fix="give a list of assertions")
        frozen_tests = [read_assertion(line, row["function"], where) for line in tests]
        if weak := too_weak(frozen_tests):
            raise UserError(f"its tests are passed by {weak}", where=where, fix="add tests that tell right from wrong")
        frozen: dict[str, Any] = {"tests": [test.to_json() for test in frozen_tests]}
        if isinstance(row.get("solution"), str):
            frozen["solution"] = row["solution"]
        task = {"function": row["function"], "question": row["question"]}
        identity = str(row.get("id", f"{number:07d}"))
        names.add(identity)
        # The outcome of a task that was edited is not that of the new one.
        named = f"{identity}#{digest(row)}"
        items.append(Item(named, str(row.get("topic", "tasks")), task, frozen, (parent,)))
    if len(names) < len(items):
        raise UserError("two tasks have the same id", where=str(path), fix="give each its own")
    return items
