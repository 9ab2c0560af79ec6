"""Verifiers that run what a model wrote: its syntax, its frozen tests, its output beside another program's."""

import ast
import json
import warnings
from pathlib import Path
from typing import Any

from isthmus.data.extras import need
from isthmus.data.synthetic.code.tests import Test, equal
from isthmus.data.synthetic.code.text import code_of
from isthmus.data.synthetic.protocols import Candidate, Item, Verdict
from isthmus.data.synthetic.sandbox.job import Ended, Job, Limits, Outcome
from isthmus.data.synthetic.sandbox.languages import LANGUAGES
from isthmus.data.synthetic.sandbox.pool import Sandbox

_DRIVER = Path(__file__).parents[1] / "code" / "inside_driver.py"
_SHOWN = 1500  # characters of output that a repair round is shown
_LARGEST = 50_000  # characters of a program


class Parses:
    """Python that parses, defines the function it was asked for, and at which pyflakes finds nothing."""

    name = "parses"
    version = 1

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        code = code_of(candidate.text)
        if not code or len(code) > _LARGEST:
            return _rejected("no code" if not code else "too long", returncode=1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return _rejected("does not parse", stderr=f"{type(error).__name__}: {error}", returncode=1)
        function = str(item.task["function"])
        if not any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
            return _rejected("lacks the function", stderr=f"there is no function {function}", returncode=1)
        checker = need("pyflakes.checker", "'isthmus[synthetic]'").Checker
        try:
            messages = checker(tree, filename="solution.py").messages
        except RecursionError:  # it calls itself for every term of a sum
            return _rejected("nested too deeply", stderr="an expression is nested too deeply", returncode=1)
        if messages:
            return _rejected("lint", stderr="\n".join(str(message) for message in messages), returncode=1)
        return Verdict(True)


class PassesTests:
    """Every frozen call returns what it must, twice: the second time in a new process, in the opposite order.

    What a program returns because of an earlier call, at random or by the clock, does not pass.
    """

    name = "tests"
    version = 1

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox, self._limits = sandbox, limits

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        tests = [Test(*entry) for entry in item.frozen["tests"]]
        for order in (tests, tests[::-1]):
            verdict = self._run(str(item.task["function"]), order, code_of(candidate.text))
            if not verdict.ok:
                return verdict
        return Verdict(True)

    def close(self) -> None:
        self._sandbox.close()

    def _run(self, function: str, tests: list[Test], code: str) -> Verdict:
        calls = {"function": function, "calls": [list(test.arguments) for test in tests]}
        files = {
            "main.py": _DRIVER.read_bytes(),
            "solution.py": code.encode("utf-8", "surrogatepass"),
            "calls.json": json.dumps(calls).encode(),
        }
        outcome = self._sandbox.run(Job(language="python", main="main.py", files=files, limits=self._limits))
        results = _results(outcome.result)
        for number, test in enumerate(tests):
            if number >= len(results):
                shown = f"{function}({', '.join(_shown(entry) for entry in test.arguments)})"
                return _of_outcome(_why(outcome, "no result"), outcome, call=shown)
            if not equal(results[number], test.expected, test.tolerance):
                shown = f"{function}({', '.join(_shown(entry) for entry in test.arguments)})"
                return _of_outcome("wrong result", outcome, call=shown, got=_shown(results[number])[:200])
        if not outcome.succeeded:
            return _of_outcome(_why(outcome, "ends with an error"), outcome)
        return Verdict(True)


class PrintsTheSame:
    """A program in the item's language that parses, and prints for every input what the original does."""

    name = "output"
    version = 1

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox, self._limits = sandbox, limits

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        code = code_of(candidate.text)
        if not code or len(code) > _LARGEST:
            return _rejected("no code" if not code else "too long", returncode=1)
        language = LANGUAGES[str(item.task["language"])]
        main = f"main{language.suffix}"
        files = {main: code.encode("utf-8", "surrogatepass")}
        if language.check:
            options = language.check
            parsed = self._sandbox.run(
                Job(language=language.name, main=main, files=files, options=options, limits=self._limits)
            )
            if not parsed.succeeded:
                return _of_outcome("does not parse", parsed)
        for given, wanted in zip(item.frozen["inputs"], item.frozen["outputs"], strict=True):
            outcome = self._sandbox.run(
                Job(language=language.name, main=main, files=files, stdin=given.encode(), limits=self._limits)
            )
            if not outcome.succeeded:
                return _of_outcome(_why(outcome, "ends with an error"), outcome, call=given)
            if lines(outcome.stdout) != lines(wanted.encode()):
                return _of_outcome("prints something else", outcome, call=given)
        return Verdict(True)

    def close(self) -> None:
        self._sandbox.close()


def lines(output: bytes) -> list[bytes]:
    """Return the lines of an output, without blanks at their ends and empty lines at its end."""
    found = [line.rstrip() for line in output.split(b"\n")]
    while found and not found[-1]:
        found.pop()
    return found


def _results(written: bytes) -> list[Any]:
    """Return what the driver has written, up to the first line that is not its next one.

    The candidate can write there too, but nothing that it could not return: it does not know what is wanted.
    """
    found: list[Any] = []
    for line in written.splitlines():
        try:
            number, value = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            break
        if type(number) is not int or number != len(found):
            break
        found.append(value)
    return found


def _why(outcome: Outcome, otherwise: str) -> str:
    if outcome.ended is Ended.wall_clock:
        return "takes too long"
    if outcome.ended is Ended.output:
        return "writes too much"
    if outcome.code == -24:  # SIGXCPU
        return "takes too long"
    return "crashes" if outcome.ended is Ended.killed else otherwise


def _of_outcome(reason: str, outcome: Outcome, **more: str) -> Verdict:
    stdout, stderr = (text.decode(errors="replace") for text in (outcome.stdout, outcome.stderr))
    return _rejected(reason, stdout=stdout, stderr=stderr, returncode=outcome.code, **more)


def _rejected(reason: str, *, stdout: str = "", stderr: str = "", returncode: int | None, **more: str) -> Verdict:
    details = {"stdout": stdout[-_SHOWN:], "stderr": stderr[-_SHOWN:], "returncode": returncode, **more}
    return Verdict(False, reason, details)


def _shown(value: Any) -> str:
    """Return an encoded value as Python would write it; what the candidate wrote itself need not be one."""
    try:
        return _written(value)
    except (TypeError, ValueError, RecursionError):
        return "no value"


def _written(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_written(entry) for entry in value)}]"
    if isinstance(value, dict) and len(value) == 1:
        ((tag, content),) = value.items()
        if tag == "float":
            return f"float('{content}')"
        if tag == "dict":
            return "{" + ", ".join(f"{_written(key)}: {_written(entry)}" for key, entry in content) + "}"
        inner = ", ".join(_written(entry) for entry in content)
        return f"({inner}{',' * (len(content) == 1)})" if tag == "tuple" else f"{{{inner}}}" if content else "set()"
    return repr(value)
