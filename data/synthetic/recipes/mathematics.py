"""Mathematics and reasoning: procedural problems, solutions by model or template, verified symbolically."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from isthmus.config import key
from isthmus.data.extras import need
from isthmus.data.synthetic.context import Context
from isthmus.data.synthetic.protocols import Candidate, Item, Prompt, Verdict, Verifier, ask_once, digest
from isthmus.data.synthetic.recipes.problems import KINDS
from isthmus.data.synthetic.verifiers.equations import Equations
from isthmus.data.synthetic.verifiers.mathematics import Mathematics, answer_of
from isthmus.errors import UserError

_TASK = (
    "Solve the problem step by step in clear English. Show every calculation. End with a line of its own:\n"
    "Answer: \\boxed{...}"
)
_OPENINGS = ("", "Let us go step by step.", "Solution.", "One way to solve it:")


@dataclass(kw_only=True, slots=True)
class MathematicsOptions:
    kinds: list[str] = key(list(KINDS), "own kinds of problems")
    reasoning_gym: list[str] = key([], "names of datasets of the package reasoning-gym, beside the own kinds")
    levels: list[int] = key([1, 2, 3], "difficulties of the own kinds, from 1")
    instructions: bool = key(True, "begin prompts with instructions; without, a model continues as documents go on")


class MathematicsRecipe:
    """Each item is a problem with its frozen answer; without a model, the frozen solution is what template gives."""

    name = "mathematics"
    version = 1

    def __init__(self, options: MathematicsOptions, context: Context) -> None:
        self._options, self._seed = options, context.seed
        for name in options.kinds:
            if name not in KINDS:
                raise UserError(
                    f"there is no kind '{name}'", where="data.options.kinds", fix=f"choose of: {', '.join(KINDS)}"
                )
        if not options.kinds and not options.reasoning_gym:
            raise UserError("are both empty", where="data.options.kinds and reasoning_gym", fix="name some")
        if not options.levels or min(options.levels) < 1:
            raise UserError(f"is {options.levels}", where="data.options.levels", fix="levels start at 1")
        self._gym = {name: _dataset(name, context.seed) for name in options.reasoning_gym}
        self.verifiers: Sequence[Verifier] = (Equations(), _Answer(self._gym))

    def items(self) -> Iterator[Item]:
        """Yield problems without end, the kinds in turn; none asks the same question twice in a row of its kind."""
        sources = [*self._options.kinds, *self._gym]
        number = 0
        while True:
            kind = sources[number % len(sources)]
            turn = number // len(sources)
            yield self._own(kind, turn) if kind in KINDS else self._of_gym(kind, turn)
            number += 1

    def write(self, task: Mapping[str, Any]) -> Generator[Sequence[Prompt], Sequence[str], str]:
        return ask_once(Prompt(self._messages(task)))

    def repair(self, task: Mapping[str, Any], text: str, verdict: Verdict) -> Prompt:
        """Say what is wrong, never what would be right."""
        found = f" ({verdict.details['equation']})" if "equation" in verdict.details else ""
        messages = (
            *self._messages(task),
            ("assistant", text),
            ("user", f"This is not right: {verdict.reason}{found}. Check each step and solve the problem again."),
        )
        return Prompt(messages, purpose="repair")

    def document(self, item: Item, text: str) -> str:
        return f"{item.task['question']}\n\n{text.strip()}"

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        parts = [random.choice(_OPENINGS), *item.frozen.get("steps", [])]
        return "\n".join([part for part in parts if part] + [f"Answer: \\boxed{{{item.frozen['answer']}}}"])

    def _messages(self, task: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        question = ("user", str(task["question"]))
        return (("system", _TASK), question) if self._options.instructions else (question,)

    def _own(self, kind: str, turn: int) -> Item:
        levels = self._options.levels
        level = levels[turn % len(levels)]
        problem = KINDS[kind](Random(digest([self._seed, kind, turn])), level)
        frozen = {"answer": problem.answer, "steps": list(problem.steps)}
        return Item(f"{kind}/{turn:07d}", kind, {"question": problem.question, "level": level}, frozen)

    def _of_gym(self, name: str, turn: int) -> Item:
        entry = self._gym[name][turn]
        frozen = {"answer": str(entry["answer"]), "dataset": name, "turn": turn}
        return Item(f"{name}/{turn:07d}", name, {"question": str(entry["question"])}, frozen)


class _Answer:
    """The final answer is the frozen one; where a dataset of reasoning-gym has rules of its own, by those."""

    name = "answer"
    version = 1

    def __init__(self, gym: Mapping[str, Any]) -> None:
        self._gym, self._mathematics = gym, Mathematics()

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        if "dataset" not in item.frozen:
            return self._mathematics.check(item, candidate)
        answer = answer_of(candidate.text)
        if answer is None:
            return Verdict(False, "no single final answer")
        dataset = self._gym[item.frozen["dataset"]]
        entry = dataset[item.frozen["turn"]]
        score = float(dataset.score_answer(answer, entry))
        return Verdict(score == 1.0, "" if score == 1.0 else "wrong answer", {"answer": answer[:300], "score": score})


def _dataset(name: str, seed: int) -> Any:
    gym = need("reasoning_gym", "reasoning-gym")
    try:
        return gym.create_dataset(name, seed=seed, size=2**31)
    except ValueError as error:
        raise UserError(
            f"{name}: {error}", where="data.options.reasoning_gym", fix="name one of its datasets"
        ) from None
