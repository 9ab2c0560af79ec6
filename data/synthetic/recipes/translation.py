"""Code translation: Python programs into rarer languages, kept if they parse and print the same on generated inputs."""

import hashlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from isthmus.config import key
from isthmus.data.synthetic.code.programs import inputs, program
from isthmus.data.synthetic.code.text import code_of, fenced
from isthmus.data.synthetic.code.translate import translate
from isthmus.data.synthetic.context import Context
from isthmus.data.synthetic.protocols import Item, Prompt, Verdict, Verifier, ask_once, digest
from isthmus.data.synthetic.recipes.code import explain
from isthmus.data.synthetic.sandbox.job import Job, Limits
from isthmus.data.synthetic.sandbox.languages import find, present
from isthmus.data.synthetic.sandbox.pool import Sandbox
from isthmus.data.synthetic.verifiers.execution import PrintsTheSame, lines
from isthmus.errors import UserError

_TITLES = {"javascript": "JavaScript (Node.js)", "perl": "Perl 5", "php": "PHP 8", "lua": "Lua 5.4"}
_INSTRUCTIONS = (
    "Translate the Python program to {title}. It must read the same standard input and print exactly the "
    "same, also for "
    "negative numbers. Use no packages. Answer with the code alone, in one block between ```{language} and ```."
)


@dataclass(kw_only=True, slots=True)
class TranslationOptions:
    languages: list[str] = key([], "of javascript, perl, php, lua (none: those whose interpreter is on this machine)")
    programs: str | None = key(
        None, "your own programs instead: .jsonl with program, inputs (texts), and id and topic if you like"
    )
    inputs: int = key(5, "inputs generated for each program of isthmus' own")
    parts: int = key(3, "parts of each program of isthmus' own, from 1 to 6")
    seconds: int = key(5, "CPU time of a program on one input")
    memory_bytes: int = key(256 << 20, "memory of a program")


class TranslationRecipe:
    """Each item is a program and a language; what the program prints is frozen before any model is asked."""

    name = "translation"
    version = 1

    def __init__(self, options: TranslationOptions, context: Context) -> None:
        self._options, self._seed = options, context.seed
        self._languages = list(options.languages) or [name for name in present() if name in _TITLES]
        for name in self._languages:
            if name not in _TITLES:
                raise UserError(
                    f"there is no '{name}'", where="data.options.languages", fix=f"choose of: {', '.join(_TITLES)}"
                )
            find(name)
        if not self._languages:
            raise UserError(
                f"none of {', '.join(_TITLES)} is on this machine", where="data.options.languages", fix="install one"
            )
        for name, least, most in (("inputs", 2, 100), ("parts", 1, 6), ("seconds", 1, 600)):
            if not least <= getattr(options, name) <= most:
                raise UserError(
                    f"is {getattr(options, name)}", where=f"data.options.{name}", fix=f"choose {least} to {most}"
                )
        self._own = _read_programs(Path(options.programs).expanduser()) if options.programs is not None else None
        self._limits = Limits(
            cpu_seconds=options.seconds, wall_seconds=10.0 * options.seconds, memory_bytes=options.memory_bytes
        )
        self._sandbox = Sandbox(self._languages)
        self.verifiers: Sequence[Verifier] = (PrintsTheSame(self._sandbox, self._limits),)

    def items(self) -> Iterator[Item]:
        """Yield each program once for every language; isthmus' own have no end.

        Raises:
            UserError: this machine cannot run programs safely, or a program of the user's fails or prints too little.
        """
        self._sandbox.open()
        if self._own is not None:
            for identity, topic, source, given, parent in self._own:
                yield from self._items(identity, topic, source, given, (parent,))
            return
        number = 0
        while True:
            random = Random(digest([self._seed, "program", number]))
            source = program(random, self._options.parts)
            yield from self._items(f"{number:07d}", "", source, inputs(random, self._options.inputs), ())
            number += 1

    def write(self, task: Mapping[str, Any]) -> Generator[Sequence[Prompt], Sequence[str], str]:
        return ask_once(Prompt(_messages(task)))

    def repair(self, task: Mapping[str, Any], text: str, verdict: Verdict) -> Prompt:
        """Show what the translation did, never what the original prints."""
        return Prompt((*_messages(task), ("assistant", text), ("user", explain(verdict))), purpose="repair")

    def document(self, item: Item, text: str) -> str:
        language = str(item.task["language"])
        source = fenced(str(item.task["program"]), "python")
        return (
            f"A program in Python:\n\n{source}\n\nThe same in {_TITLES[language]}:\n\n{fenced(code_of(text), language)}"
        )

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        language = str(item.task["language"])
        try:
            return fenced(translate(str(item.task["program"]), language), language)
        except (ValueError, SyntaxError) as error:
            raise UserError(f"{item.id}: {error}", where="data.options.programs", fix="use a model for these") from None

    def _items(
        self, identity: str, topic: str, source: str, given: Sequence[str], parents: tuple[str, ...]
    ) -> Iterator[Item]:
        outputs = [self._output(identity, source, text) for text in given]
        if len(set(outputs)) < 2:
            raise UserError(
                "prints the same for all its inputs, so anything that prints that would pass",
                where=f"program {identity}",
                fix="give inputs that make a difference",
            )
        for language in self._languages:
            task = {"program": source, "language": language}
            frozen = {"inputs": list(given), "outputs": outputs}
            yield Item(f"{identity}/{language}", topic or language, task, frozen, parents)

    def _output(self, identity: str, source: str, given: str) -> str:
        job = Job(
            language="python",
            main="main.py",
            files={"main.py": source.encode()},
            stdin=given.encode(),
            limits=self._limits,
        )
        outcome = self._sandbox.run(job)
        if not outcome.succeeded:
            why = (outcome.stderr.decode(errors="replace").strip().splitlines() or [outcome.ended.value])[-1]
            raise UserError(
                f"fails on {given.strip()[:40]!r}: {why}", where=f"program {identity}", fix="correct it or its inputs"
            )
        return b"\n".join(lines(outcome.stdout)).decode(errors="replace")


def _messages(task: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    language = str(task["language"])
    instructions = _INSTRUCTIONS.format(title=_TITLES[language], language=language)
    return (("system", instructions), ("user", fenced(str(task["program"]), "python")))


def _read_programs(path: Path) -> list[tuple[str, str, str, list[str], str]]:
    """Read a user's programs: id, topic, program, inputs, and what names the file.

    Raises:
        UserError: the file cannot be read, or a program lacks something.
    """
    where = f"data.options.programs={path}"
    try:
        content = path.read_bytes()
        rows = [json.loads(line) for line in content.decode().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=where, fix="give JSON lines") from None
    parent = f"{path.name}#{hashlib.blake2b(content, digest_size=8).hexdigest()}"
    found, names = [], set[str]()
    for number, row in enumerate(rows, start=1):
        given = row.get("inputs") if isinstance(row, dict) else None
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise UserError("lacks inputs", where=f"{path}:{number}", fix="give a list of texts")
        if not isinstance(row.get("program"), str):
            raise UserError("lacks program", where=f"{path}:{number}", fix="give the text of a Python program")
        identity = str(row.get("id", f"{number:07d}"))
        names.add(identity)
        # The outcome of a program that was edited is not that of the new one.
        named = f"{identity}#{digest(row)}"
        found.append((named, str(row.get("topic", "")), row["program"], given, parent))
    if len(names) < len(found):
        raise UserError("two programs have the same id", where=where, fix="give each its own")
    return found
