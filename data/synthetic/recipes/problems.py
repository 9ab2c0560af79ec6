"""Problems with a worked solution each: procedural, exact, the same for the same random numbers on every machine."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import comb, gcd, lcm
from random import Random

_NAMES = ("Amara", "Bo", "Carmen", "Dmitri", "Esther", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kavya", "Lena")


@dataclass(frozen=True)
class Problem:
    """A question, the steps of a solution in order, and the answer in LaTeX or plain text."""

    question: str
    steps: tuple[str, ...]
    answer: str


def linear(random: Random, level: int) -> Problem:
    span = 10**level
    a, c = random.sample(range(2, span + 3), 2)
    b, d = random.randint(-span, span), random.randint(-span, span)
    x = Fraction(d - b, a - c)
    return Problem(
        f"Solve for x: {a}x {_signed(b)} = {c}x {_signed(d)}.",
        (
            f"Bring the terms with x to one side and the numbers to the other: ({a} - {c})x = {d} - ({b}).",
            f"That is {a - c}x = {d - b}.",
            f"Divide by {a - c}: x = {_fraction(x)}.",
        ),
        _latex(x),
    )


def quadratic(random: Random, level: int) -> Problem:
    first, second = sorted(random.sample(range(-5 * level, 5 * level + 1), 2))
    b, c = -(first + second), first * second
    equation = "x^2" + (f" {_signed(b, 'x')}" if b else "") + (f" {_signed(c)}" if c else "") + " = 0"
    return Problem(
        f"Find all real solutions of {equation}.",
        (
            f"Look for two numbers with the sum {first + second} and the product {c}: they are {first} and {second}.",
            f"So the left side is (x {_signed(-first)})(x {_signed(-second)}), which is 0 where a factor is 0.",
            f"The solutions are x = {first} and x = {second}.",
        ),
        rf"\{{{first}, {second}\}}",
    )


def fractions(random: Random, level: int) -> Problem:
    one = Fraction(random.randint(1, 9 * level), random.randint(2, 9 * level))
    two = Fraction(random.randint(1, 9 * level), random.randint(2, 9 * level))
    sign = random.choice("+-")
    base = lcm(one.denominator, two.denominator)
    tops = [value.numerator * (base // value.denominator) for value in (one, two)]
    top = tops[0] + tops[1] if sign == "+" else tops[0] - tops[1]
    result = Fraction(top, base)
    steps = [
        f"The least common denominator of {one.denominator} and {two.denominator} is {base}.",
        f"With it the fractions are {tops[0]}/{base} and {tops[1]}/{base}.",
        f"Their numerators give {tops[0]} {sign} {tops[1]} = {top}, so the result is {top}/{base}.",
    ]
    if Fraction(top, base).denominator != base:
        steps.append(f"Reduced by {gcd(top, base)} it is {_fraction(result)}.")
    return Problem(f"Calculate {_fraction(one)} {sign} {_fraction(two)}.", tuple(steps), _latex(result))


def percent(random: Random, level: int) -> Problem:
    price, rate = 20 * random.randint(2, 40 * level), 5 * random.randint(1, 19)
    thing = random.choice(("coat", "bicycle", "lamp", "table", "radio", "tent"))
    cut = Fraction(price * rate, 100)
    return Problem(
        f"A {thing} costs {price} euros. Its price is reduced by {rate}%. What is the new price in euros?",
        (
            f"{rate}% of {price} is {price} * {rate} / 100 = {_decimal(cut)}.",
            f"The new price is {price} - {_decimal(cut)} = {_decimal(price - cut)}.",
        ),
        _decimal(price - cut),
    )


def system(random: Random, level: int) -> Problem:
    span = 4 * level
    x, y = random.randint(-span, span), random.randint(-span, span)
    while True:
        a, b, c, d = (random.randint(1, 5 * level) for _ in range(4))
        if determinant := a * d - b * c:
            break
    e, f = a * x + b * y, c * x + d * y
    return Problem(
        f"Solve the system {a}x + {b}y = {e} and {c}x + {d}y = {f}. Give (x, y).",
        (
            f"Multiply the first equation by {d} and the second by {b} and subtract: the terms with y cancel.",
            f"What remains is ({a * d} - {b * c})x = {e * d} - ({f * b}), that is {determinant}x = {e * d - f * b}, "
            f"so x = {x}.",
            f"In the first equation: {b}y = {e} - ({a * x}), that is {b}y = {b * y}, so y = {y}.",
        ),
        f"({x}, {y})",
    )


def divisors(random: Random, level: int) -> Problem:
    common = random.randint(2, 12 * level)
    a, b = (common * random.randint(2, 15 * level) for _ in range(2))
    steps, high, low = [], max(a, b), min(a, b)
    while low:
        steps.append(f"{high} divided by {low} leaves {high % low}.")
        high, low = low, high % low
    if random.random() < 0.5:
        steps.append(f"The last divisor is the greatest common divisor: {high}.")
        return Problem(f"What is the greatest common divisor of {a} and {b}?", tuple(steps), str(high))
    steps.append(f"So the greatest common divisor is {high}.")
    steps.append(f"The least common multiple is the product divided by it: {a} * {b} / {high} = {lcm(a, b)}.")
    return Problem(f"What is the least common multiple of {a} and {b}?", tuple(steps), str(lcm(a, b)))


def derivative(random: Random, level: int) -> Problem:
    powers = sorted(random.sample(range(1, 4 + level), min(3, 2 + level)), reverse=True)
    terms = [(random.choice((-1, 1)) * random.randint(1, 9 * level), power) for power in powers]
    steps = [f"The derivative of {_term(a, n)} is {_term(a * n, n - 1)}." for a, n in terms]
    derived = [(a * n, n - 1) for a, n in terms]
    return Problem(
        f"Find the derivative of f(x) = {_polynomial(terms)}.",
        (
            "A sum is derived term by term, and the derivative of a x^n is a n x^(n-1).",
            *steps,
            f"Together: f'(x) = {_polynomial(derived)}.",
        ),
        _polynomial(derived),
    )


def drawing(random: Random, level: int) -> Problem:
    red, blue = random.randint(2, 4 + 3 * level), random.randint(2, 4 + 3 * level)
    count = random.randint(2, min(red, 1 + level))
    ways, all_ways = comb(red, count), comb(red + blue, count)
    chance = Fraction(ways, all_ways)
    return Problem(
        f"A bag holds {red} red and {blue} blue marbles. {count} are drawn at random without putting any back. What is "
        "the probability that all of them are red?",
        (
            f"There are C({red + blue}, {count}) = {all_ways} ways to draw {count} of {red + blue} marbles.",
            f"In C({red}, {count}) = {ways} of them all are red.",
            f"The probability is {ways}/{all_ways}"
            + (f", which reduces to {_fraction(chance)}." if chance.denominator != all_ways else "."),
        ),
        _latex(chance),
    )


def journey(random: Random, level: int) -> Problem:
    slow = random.randint(3, 8 * level) * 10
    fast = slow + 10 * random.randint(1, 3 * level)
    hours = random.randint(1, 2 + level)
    lead = slow * hours
    time = Fraction(lead, fast - slow)
    first, second = random.sample(_NAMES, 2)
    return Problem(
        f"{first} sets out at {slow} km/h. {hours} {'hour' if hours == 1 else 'hours'} later {second} follows on the "
        f"same road at {fast} km/h. How many hours does {second} need to catch up?",
        (
            f"When {second} sets out, {first} is {slow} * {hours} = {lead} km ahead.",
            f"The distance shrinks by {fast} - {slow} = {fast - slow} km every hour.",
            f"It takes {lead} / {fast - slow} = {_fraction(time)} hours.",
        ),
        _latex(time),
    )


def series(random: Random, level: int) -> Problem:
    first, step, count = random.randint(1, 20 * level), random.randint(2, 9 * level), random.randint(5, 20 * level)
    last = first + (count - 1) * step
    return Problem(
        f"Add up the first {count} terms of the sequence {first}, {first + step}, {first + 2 * step}, ...",
        (
            f"Each term is {step} more than the one before, so the last is {first} + {count - 1} * {step} = {last}.",
            f"First and last add up to {first} + {last} = {first + last}, and so does every pair from outside in.",
            f"The sum is {count} * {first + last} / 2 = {count * (first + last) // 2}.",
        ),
        str(count * (first + last) // 2),
    )


def remainder(random: Random, level: int) -> Problem:
    base, power, modulus = random.randint(2, 9 + 10 * level), random.randint(3, 6 + 6 * level), random.randint(5, 97)
    steps, value = [], 1
    for bit in bin(power)[2:]:
        squared = value * value % modulus
        value = squared * (base if bit == "1" else 1) % modulus
        what = f"square and multiply by {base}" if bit == "1" else "square"
        steps.append(f"For the binary digit {bit}: {what}, which leaves {value}.")
    return Problem(
        f"What is the remainder of {base}^{power} divided by {modulus}?",
        (f"Write the exponent {power} in binary, {power:b}, and begin with 1; keep only remainders.", *steps),
        str(value),
    )


def ordering(random: Random, level: int) -> Problem:
    people = random.sample(_NAMES, min(len(_NAMES), 3 + level))
    hints = [f"{a} is taller than {b}." for a, b in pairwise(people)]
    place = random.randrange(len(people))
    told = random.sample(hints, len(hints))
    return Problem(
        f"{' '.join(told)} Sorted from the tallest to the shortest, who is in place {place + 1}?",
        (
            f"Only {people[0]} is never named as the shorter one, so {people[0]} is the tallest.",
            f"From there one hint leads to the next: {', then '.join(people)}.",
            f"In place {place + 1} is {people[place]}.",
        ),
        people[place],
    )


KINDS: dict[str, Callable[[Random, int], Problem]] = {
    "linear": linear, "quadratic": quadratic, "fractions": fractions, "percent": percent, "system": system,
    "divisors": divisors, "derivative": derivative, "drawing": drawing, "journey": journey, "series": series,
    "remainder": remainder, "ordering": ordering,
}  # fmt: skip


def _signed(number: int, of: str = "") -> str:
    return f"{'-' if number < 0 else '+'} {'' if of and abs(number) == 1 else abs(number)}{of}"


def _fraction(value: Fraction) -> str:
    return str(value)


def _latex(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _decimal(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}".rstrip("0")


def _term(factor: int, power: int) -> str:
    variable = "" if power == 0 else "x" if power == 1 else f"x^{power}"
    if not variable:
        return str(factor)
    return variable if factor == 1 else f"-{variable}" if factor == -1 else f"{factor}{variable}"


def _polynomial(terms: list[tuple[int, int]]) -> str:
    text = _term(*terms[0])
    for factor, power in terms[1:]:
        text += f" {'-' if factor < 0 else '+'} {_term(abs(factor), power)}"
    return text
