"""Topics of programming tasks: each makes any number of tasks, with a solution from which tests are frozen."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Topic:
    """A topic.

    Args:
        function: name of the function asked for.
        parameters: drawn for each task; they stand as {name} in question and solution.
        question: what the function must do.
        solution: Python.
        arguments: draws the arguments of one call.
    """

    function: str
    parameters: Callable[[Random], Mapping[str, Any]]
    question: str
    solution: str
    arguments: Callable[[Random, Mapping[str, Any]], Sequence[Any]]


def _numbers(random: Random, low: int = -20, high: int = 20, most: int = 18, near: int | None = None) -> list[int]:
    """Draw numbers, a third of them about `near`, where a program that is off by one is wrong."""
    count = random.choice([0, 1, 2, 5, most])
    return [
        random.randint(low, high) if near is None or random.random() < 0.67 else near + random.randint(-1, 1)
        for _ in range(count)
    ]


def _adding_up(random: Random, limit: int) -> list[int]:
    """Draw numbers from 0 on whose sums come to exactly `limit`, one less or one more, or anywhere."""
    numbers: list[int] = []
    for _ in range(random.randint(0, 3)):
        first = random.randint(0, limit)
        numbers += random.choice([[first, limit - first], [limit], [limit + 1], [limit - 1], _numbers(random, 0, 30)])
    return numbers


def _word(random: Random, letters: str = "abcdeABC xyz", most: int = 12) -> str:
    return "".join(random.choice(letters) for _ in range(random.choice([0, 1, 3, 7, most])))


TOPICS: dict[str, Topic] = {
    "sums": Topic(
        "sum_multiples",
        lambda random: {"k": random.randint(2, 40)},
        "Return the sum of those numbers of the list `numbers` that are divisible by {k}.",
        "def sum_multiples(numbers):\n    return sum(number for number in numbers if number % {k} == 0)\n",
        lambda random, values: [_numbers(random, near=values["k"] * random.randint(-2, 3))],
    ),
    "counting": Topic(
        "count_above",
        lambda random: {"k": random.randint(-15, 19)},
        "Return how many numbers of the list `numbers` are greater than {k}.",
        "def count_above(numbers):\n    return sum(1 for number in numbers if number > {k})\n",
        lambda random, values: [_numbers(random, near=values["k"])],
    ),
    "lists": Topic(
        "rotate_left",
        lambda random: {"k": random.randint(1, 12)},
        "Return the list `items` rotated to the left by {k} places; the list may be shorter than that, or empty.",
        "def rotate_left(items):\n    if not items:\n        return []\n    places = {k} % len(items)\n"
        "    return items[places:] + items[:places]\n",
        lambda random, _: [_numbers(random)],
    ),
    "running values": Topic(
        "running_sums",
        lambda random: {"k": random.randint(10, 60)},
        "Return the list of running sums of `numbers`, where a sum greater than {k} is started again from 0 "
        "after it has been noted.",
        "def running_sums(numbers):\n    sums = []\n    total = 0\n    for number in numbers:\n"
        "        total += number\n"
        "        sums.append(total)\n        if total > {k}:\n            total = 0\n    return sums\n",
        lambda random, values: [_adding_up(random, values["k"])],
    ),
    "windows": Topic(
        "largest_window",
        lambda random: {"k": random.randint(2, 7)},
        "Return the largest sum of {k} neighbouring numbers of the list `numbers`, or None if it is shorter than that.",
        "def largest_window(numbers):\n    if len(numbers) < {k}:\n        return None\n"
        "    return max(sum(numbers[start:start + {k}]) for start in range(len(numbers) - {k} + 1))\n",
        lambda random, _: [_numbers(random, random.choice([-20, -9]), random.choice([20, -1]))],
    ),
    "chunks": Topic(
        "chunks",
        lambda random: {"k": random.randint(2, 8)},
        "Return the list `items` cut into lists of {k} entries; the last one may be shorter.",
        "def chunks(items):\n    return [items[start:start + {k}] for start in range(0, len(items), {k})]\n",
        lambda random, _: [_numbers(random)],
    ),
    "ciphers": Topic(
        "shift_letters",
        lambda random: {"k": random.randint(1, 25)},
        "Return `text` with each letter from a to z replaced by the letter {k} places later, from z on to a again, "
        "in upper case where it was upper case. Leave everything else as it is.",
        "def shift_letters(text):\n    shifted = []\n    for character in text:\n        if 'a' <= character <= 'z':\n"
        "            shifted.append(chr((ord(character) - 97 + {k}) % 26 + 97))\n"
        "        elif 'A' <= character <= 'Z':\n"
        "            shifted.append(chr((ord(character) - 65 + {k}) % 26 + 65))\n"
        "        else:\n            shifted.append(character)\n    return ''.join(shifted)\n",
        lambda random, _: [_word(random, "abcxyzABCXYZ 1!")],
    ),
    "text": Topic(
        "long_words",
        lambda random: {"k": random.randint(2, 8)},
        "Return the words of `text`, separated by blanks, that have at least {k} letters, in their order.",
        "def long_words(text):\n    return [word for word in text.split() if len(word) >= {k}]\n",
        lambda random, values: [
            " ".join(
                "a" * (values["k"] + random.randint(-2, 2)) + random.choice("bcd") for _ in range(random.randint(0, 6))
            )
        ],
    ),
    "frequencies": Topic(
        "frequent",
        lambda random: {"k": random.randint(2, 6)},
        "Return a dictionary from each character that `text` has at least {k} times to how often it has it.",
        "def frequent(text):\n    counts = {{}}\n    for character in text:\n"
        "        counts[character] = counts.get(character, 0) + 1\n"
        "    return {{character: count for character, count in counts.items() if count >= {k}}}\n",
        lambda random, _: [_word(random, "aaabbcd", 24)],
    ),
    "digits": Topic(
        "digit_sum",
        lambda random: {"k": random.randint(2, 36)},
        "Return the sum of the digits of the number `number`, which is 0 or more, written in base {k}.",
        "def digit_sum(number):\n    total = 0\n    while number:\n        total += number % {k}\n"
        "        number //= {k}\n    return total\n",
        lambda random, _: [random.choice([0, 1, 7, 10, 99, 1000, random.randint(0, 10**6)])],
    ),
    "primes": Topic(
        "primes_between",
        lambda random: {"k": random.randint(2, 60)},
        "Return the list of all prime numbers from {k} to `last`, both included.",
        "def primes_between(last):\n    primes = []\n    for number in range({k}, last + 1):\n        divisor = 2\n"
        "        while divisor * divisor <= number and number % divisor:\n            divisor += 1\n"
        "        if divisor * divisor > number:\n            primes.append(number)\n    return primes\n",
        lambda random, values: [values["k"] + random.choice([-1, 0, 1, 2, 7, 30, 60])],
    ),
    "sequences": Topic(
        "collatz_steps",
        lambda random: {"a": random.choice([3, 3, 5]), "k": random.randint(10, 99)},
        "A number that is even is halved, and one that is odd is multiplied by {a} and 1 is added. Return how many of "
        "these steps lead from the number `start`, which is 1 or more, to 1, but never more than {k}.",
        "def collatz_steps(start):\n    steps = 0\n    while start != 1 and steps < {k}:\n"
        "        start = start // 2 if start % 2 == 0 else {a} * start + 1\n        steps += 1\n    return steps\n",
        lambda random, _: [random.choice([1, 2, 3, 7, 12, 27, random.randint(1, 300)])],
    ),
    "pairs": Topic(
        "pairs_with_sum",
        lambda random: {"k": random.randint(-8, 20)},
        "Return the number of pairs of places i < j in the list `numbers` whose numbers add up to {k}.",
        "def pairs_with_sum(numbers):\n    count = 0\n    for i in range(len(numbers)):\n"
        "        for j in range(i + 1, len(numbers)):\n            if numbers[i] + numbers[j] == {k}:\n"
        "                count += 1\n    return count\n",
        lambda random, _: [_numbers(random, -6, 12)],
    ),
    "matrices": Topic(
        "column_sums",
        lambda random: {"k": random.randint(2, 40)},
        "Return the list of the sums of the columns of `rows`, a list of lists of equal length, each sum multiplied "
        "by {k}. Of no rows, return an empty list.",
        "def column_sums(rows):\n    return [{k} * sum(column) for column in zip(*rows)]\n",
        lambda random, _: [
            (lambda width, height: [[random.randint(-9, 9) for _ in range(width)] for _ in range(height)])(
                random.randint(1, 4), random.randint(0, 4)
            )
        ],
    ),
    "intervals": Topic(
        "merge",
        lambda random: {"k": random.randint(0, 9)},
        "Return the intervals of the list `intervals`, each a tuple (first, last) with first <= last, in order, with "
        "those merged that overlap or lie at most {k} apart. Return tuples.",
        "def merge(intervals):\n    merged = []\n    for first, last in sorted(intervals):\n"
        "        if merged and first - merged[-1][1] <= {k}:\n"
        "            merged[-1] = (merged[-1][0], max(merged[-1][1], last))\n"
        "        else:\n            merged.append((first, last))\n    return merged\n",
        lambda random, _: [
            [(start := random.randint(0, 40), start + random.randint(0, 4)) for _ in range(random.randint(0, 9))]
        ],
    ),
    "brackets": Topic(
        "depth",
        lambda random: dict(zip(("left", "right"), random.choice(["()", "[]", "<>"]), strict=True)),
        "Return how deep the brackets {left} and {right} of `text` are nested at most, or -1 if they do not match. "
        "Ignore all other characters.",
        "def depth(text):\n    deepest = 0\n    level = 0\n    for character in text:\n"
        "        if character == '{left}':\n"
        "            level += 1\n            deepest = max(deepest, level)\n        elif character == '{right}':\n"
        "            level -= 1\n            if level < 0:\n                return -1\n"
        "    return deepest if level == 0 else -1\n",
        lambda random, values: [
            random.choice(
                [
                    _word(random, f"{values['left']}{values['right']}a"),
                    values["left"] * (n := random.randint(0, 4)) + "a" + values["right"] * n,
                    (values["left"] + values["right"]) * random.randint(1, 3),
                    (values["right"] + values["left"]) * random.randint(1, 2),
                ]
            )
        ],
    ),
}
