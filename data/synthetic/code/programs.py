"""Small Python programs without end: each reads whole numbers from standard input and prints what it finds out."""

from random import Random

HEADER = "import sys\n\nnumbers = [int(word) for word in sys.stdin.read().split()]\n"
# Each part stands alone; {a} ... are drawn, {n} numbers the part's own names.
_PARTS = (
    "total{n} = 0\nfor number in numbers:\n    if number % {a} == {r}:\n        total{n} += number * {b}\n"
    "    else:\n        total{n} -= number // {c}\nprint('total', total{n})\n",
    "best{n} = numbers[0]\nplace{n} = 0\nfor i in range(len(numbers)):\n"
    "    if numbers[i] * {a} % {p} > best{n} * {a} % {p}:\n        best{n} = numbers[i]\n        place{n} = i\n"
    "print('best', best{n}, 'at', place{n})\n",
    "changed{n} = []\nfor number in numbers:\n    if number > {d} or number < -{d}:\n"
    "        changed{n}.append(number // {a})\n    else:\n        changed{n}.append(number * {b} + {c})\n"
    "for value in changed{n}:\n    print(value)\n",
    "def reduce{n}(value):\n    steps = 0\n    while value > {d}:\n        value = value // {a} - {b}\n"
    "        steps += 1\n"
    "    return value * {p} + steps\n\nfor number in numbers:\n"
    "    print('reduced', number, 'to', reduce{n}(abs(number)))\n",
    "pairs{n} = 0\nfor i in range(len(numbers)):\n    for j in range(i + 1, len(numbers)):\n"
    "        if (numbers[i] + numbers[j]) % {a} == {r}:\n            pairs{n} += 1\nprint('pairs', pairs{n})\n",
    "for i in range(1, {d}):\n    if i % {a} == 0 and i % {b} == 0:\n        print('both', i)\n    elif i % {a} == 0:\n"
    "        print('first', i)\n    elif not i % {b} == 0:\n        print(i + numbers[0])\n",
    "line{n} = ''\nfor number in numbers:\n    if number < 0:\n        line{n} += '-'\n    elif number % {a} == {r}:\n"
    "        line{n} += 'x'\n    else:\n        line{n} += '.'\nprint(line{n})\n",
    "left{n} = numbers[-1 + len(numbers)]\nright{n} = {p}\nwhile right{n} != 0:\n    rest = left{n} % right{n}\n"
    "    left{n} = right{n}\n    right{n} = rest\nprint('divisor', left{n})\n",
    "def weigh{n}(first, second):\n    if first > second:\n        return first - second * {b}\n"
    "    return second % {p} - first\n\nsum{n} = 0\nfor i in range(len(numbers) - 1):\n"
    "    sum{n} += weigh{n}(numbers[i], numbers[i + 1])\nprint('weighed', sum{n}, -sum{n})\n",
    "state{n} = {c}\ncount{n} = 0\nfor number in numbers:\n    state{n} = (state{n} * {b} + number) % {p}\n"
    "    if state{n} % {a} == {r}:\n        count{n} += 1\nprint('state', state{n}, 'seen', count{n})\n",
)


def program(random: Random, parts: int = 3) -> str:
    """Return a program of some parts in random order."""
    written = [HEADER]
    for number, part in enumerate(random.sample(_PARTS, parts), start=1):
        modulus = random.randint(2, 7)
        written.append(
            part.format(
                n=number,
                a=modulus,
                r=random.randrange(modulus),
                b=random.randint(2, 9),
                c=random.randint(2, 9),
                d=random.randint(10, 30),
                p=random.choice([11, 13, 17, 19, 23, 97]),
            )
        )
    return "\n".join(written)


def inputs(random: Random, count: int) -> list[str]:
    """Return what programs read: lines of at least one number, some of them long, negative or all the same."""
    found = []
    for turn in range(count):
        low, high = random.choice([(-50, 50), (0, 9), (-1000, -1), (-5, 1000)])
        numbers = [random.randint(low, high) for _ in range((1, 2, 5, 12, 3)[turn % 5])]
        found.append(" ".join(map(str, numbers)) + "\n")
    return found
