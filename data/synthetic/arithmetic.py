"""Word problems with worked solutions; every document is checked by a verifier that reads only its text."""

import random
import re
from collections.abc import Callable, Iterator

_NAMES = ("Amara", "Bo", "Carmen", "Dmitri", "Esther", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kavya", "Lena")
_THINGS = ("apples", "bolts", "candles", "envelopes", "keys", "lemons", "maps", "nails", "pencils", "ropes", "stamps")
_CONTAINERS = ("baskets", "boxes", "crates", "drawers", "jars", "sacks")
_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "x": lambda a, b: a * b,
}
_EQUATION = re.compile(r"(\d+) ([+x-]) (\d+) = (\d+)")
_ANSWER = re.compile(r"^Answer: (\d+)$")


def documents(count: int, *, seed: int, problems: int = 6) -> Iterator[str]:
    """Yield `count` documents of `problems` word problems each, the same for the same seed on every machine.

    Raises:
        ValueError: a generated document fails its own verifier, which is a bug of the generator.
    """
    rng = random.Random(seed)
    kinds = (_add, _take_away, _multiply, _two_steps)
    for _ in range(count):
        text = "\n\n".join(rng.choice(kinds)(rng) for _ in range(problems))
        if not verify(text):
            raise ValueError(f"a generated document contradicts itself: {text!r}")
        yield text


def verify(text: str) -> bool:
    """Return whether every equation holds and each problem's answer is the result of its last equation."""
    problems = text.split("\n\n")
    return all(_verify_problem(problem.splitlines()) for problem in problems)


def _verify_problem(lines: list[str]) -> bool:
    answer = _ANSWER.match(lines[-1]) if lines else None
    equations = [match for line in lines for match in _EQUATION.finditer(line)]
    if answer is None or not equations:
        return False
    right = all(
        _OPERATIONS[sign](int(a), int(b)) == int(result) for a, sign, b, result in (m.groups() for m in equations)
    )
    return right and equations[-1][4] == answer[1]


def _add(rng: random.Random) -> str:
    name, thing, first, second = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(2, 400), rng.randint(2, 400)
    total = first + second
    return (
        f"Question: {name} has {first} {thing} and finds {second} more. How many {thing} does {name} have now?\n"
        f"Adding what was found: {first} + {second} = {total}.\nAnswer: {total}"
    )


def _take_away(rng: random.Random) -> str:
    name, other = rng.sample(_NAMES, 2)
    thing, first = rng.choice(_THINGS), rng.randint(20, 500)
    second = rng.randint(1, first)
    left = first - second
    return (
        f"Question: {name} had {first} {thing} and gave {second} of them to {other}. How many are left?\n"
        f"Taking away what was given: {first} - {second} = {left}.\nAnswer: {left}"
    )


def _multiply(rng: random.Random) -> str:
    name, thing, box = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_CONTAINERS)
    count, each = rng.randint(2, 30), rng.randint(2, 30)
    total = count * each
    return (
        f"Question: {name} packs {count} {box} with {each} {thing} each. How many {thing} is that?\n"
        f"Each of the {box} holds the same: {count} x {each} = {total}.\nAnswer: {total}"
    )


def _two_steps(rng: random.Random) -> str:
    name, thing, box = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_CONTAINERS)
    count, each = rng.randint(3, 20), rng.randint(3, 20)
    total = count * each
    lost = rng.randint(1, total)
    left = total - lost
    return (
        f"Question: {name} fills {count} {box} with {each} {thing} each and then loses {lost} {thing}. "
        f"How many remain?\nFirst all of them: {count} x {each} = {total}. Then without the lost ones: "
        f"{total} - {lost} = {left}.\nAnswer: {left}"
    )
