"""Procedural problems, solved once more from their wording alone."""

import re
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations
from math import comb, gcd
from random import Random

import pytest

from isthmus.data.synthetic.protocols import Candidate, Item
from isthmus.data.synthetic.recipes.problems import KINDS, Problem
from isthmus.data.synthetic.verifiers.equations import Equations

_TURNS = 60


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"-?\d+", text.replace("- ", "-").replace("+ ", "+"))]


def value(latex: str) -> Fraction:
    if match := re.fullmatch(r"(-?)\\frac\{(\d+)\}\{(\d+)\}", latex):
        return Fraction(int(match[2]), int(match[3])) * (-1 if match[1] else 1)
    return Fraction(latex)


def linear(problem: Problem) -> bool:
    a, b, c, d = numbers(problem.question)
    x = value(problem.answer)
    return a * x + b == c * x + d


def quadratic(problem: Problem) -> bool:
    equation = problem.question.removeprefix("Find all real solutions of ").removesuffix(" = 0.")
    code = re.sub(r"(\d)x", r"\1*x", equation).replace("^", "**")
    roots = [x for x in range(-20, 21) if eval(code, {"x": x}) == 0]
    return [int(part) for part in problem.answer.strip(r"\{}").split(",")] == roots


def fractions(problem: Problem) -> bool:
    one, sign, two = problem.question.removeprefix("Calculate ").removesuffix(".").split(" ")
    return value(problem.answer) == Fraction(one) + Fraction(two) * (1 if sign == "+" else -1)


def percent(problem: Problem) -> bool:
    price, rate = numbers(problem.question)
    return Fraction(problem.answer) == price * (1 - Fraction(rate, 100))


def system(problem: Problem) -> bool:
    a, b, e, c, d, f = numbers(problem.question.partition(". Give")[0])
    x, y = numbers(problem.answer)
    return (a * x + b * y, c * x + d * y) == (e, f)


def divisors(problem: Problem) -> bool:
    a, b = numbers(problem.question)
    return int(problem.answer) == (gcd(a, b) if "divisor" in problem.question else a * b // gcd(a, b))


def derivative(problem: Problem) -> bool:
    def at(polynomial: str, x: Fraction) -> Fraction:
        code = re.sub(r"(\d)x", r"\1*x", polynomial).replace("^", "**")
        return eval(code, {"x": x})  # type: ignore[no-any-return]

    function = problem.question.partition("= ")[2].removesuffix(".")
    step = Fraction(1, 10**9)
    slopes = [(at(function, x + step) - at(function, x - step)) / (2 * step) for x in (Fraction(2), Fraction(-3, 2))]
    return all(
        abs(slope - at(problem.answer, x)) < Fraction(1, 10**9)
        for slope, x in zip(slopes, (Fraction(2), Fraction(-3, 2)), strict=True)
    )


def drawing(problem: Problem) -> bool:
    red, blue, count = numbers(problem.question)
    chance = Fraction(1)
    for turn in range(count):
        chance *= Fraction(red - turn, red + blue - turn)
    return value(problem.answer) == chance == Fraction(comb(red, count), comb(red + blue, count))


def journey(problem: Problem) -> bool:
    slow, hours, fast = numbers(problem.question)
    time = value(problem.answer)
    return slow * (hours + time) == fast * time


def series(problem: Problem) -> bool:
    count, first, second = numbers(problem.question)[:3]
    return int(problem.answer) == sum(first + turn * (second - first) for turn in range(count))


def remainder(problem: Problem) -> bool:
    base, power, modulus = numbers(problem.question)
    return int(problem.answer) == base**power % modulus


def ordering(problem: Problem) -> bool:
    taller = re.findall(r"(\w+) is taller than (\w+)\.", problem.question)
    people = sorted({name for pair in taller for name in pair})
    place = int(problem.question.split()[-1].strip("?")) - 1
    fitting = [
        order for order in permutations(people) if all(order.index(a) < order.index(b) for a, b in taller)
    ]  # fmt: skip
    return len(fitting) == 1 and fitting[0][place] == problem.answer


SOLVERS: dict[str, Callable[[Problem], bool]] = {
    "linear": linear, "quadratic": quadratic, "fractions": fractions, "percent": percent, "system": system,
    "divisors": divisors, "derivative": derivative, "drawing": drawing, "journey": journey, "series": series,
    "remainder": remainder, "ordering": ordering,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_solves_the_problem_and_every_step_holds(kind: str) -> None:
    questions = set()
    for turn in range(_TURNS):
        problem = KINDS[kind](Random(f"{kind} {turn}"), 1 + turn % 3)
        assert SOLVERS[kind](problem), problem
        verdict = Equations().check(Item("1", kind, {}), Candidate("\n".join(problem.steps)))
        assert verdict.ok, (verdict, problem)
        questions.add(problem.question)
    assert len(questions) > 0.8 * _TURNS
    assert KINDS[kind](Random("a"), 2) == KINDS[kind](Random("a"), 2)
