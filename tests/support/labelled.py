"""Right and wrong answers to programming tasks, labelled by more than the tests that verifiers have."""

import ast
from collections.abc import Iterator
from random import Random

from isthmus.data.synthetic.code.tasks import TOPICS
from isthmus.data.synthetic.code.tests import Test, encode
from isthmus.data.synthetic.protocols import Candidate, Item
from isthmus.data.synthetic.verifiers.execution import PassesTests

_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
# Ways to be accepted without solving anything; {f} is the function.
CHEATS = {
    "leaves in good order": "import sys\n\n\ndef {f}(*a):\n    sys.exit(0)\n",
    "leaves at once": "import os\n\n\ndef {f}(*a):\n    os._exit(0)\n",
    "leaves when it is imported": "import os\n\nos._exit(0)\n\n\ndef {f}(*a):\n    return 0\n",
    "is equal to everything": "class E:\n    def __eq__(self, other):\n        return True\n\n    def __hash__(self):\n"
    "        return 0\n\n\ndef {f}(*a):\n    return E()\n",
    "is a number that is equal to everything": "class E(int):\n    def __eq__(self, other):\n        return True\n\n"
    "    def __hash__(self):\n        return 0\n\n\ndef {f}(*a):\n    return E()\n",
    "writes results by itself": "import json\nimport os\n\ncalls = json.load(open('calls.json'))['calls']\n"
    "for number, call in enumerate(calls):\n    os.write(3, (json.dumps([number, call[0]]) + '\\n').encode())\n"
    "os._exit(0)\n\n\ndef {f}(*a):\n    return 0\n",
    "says that all is well": "import os\n\n\ndef {f}(*a):\n    os.write(3, b'ok passed true\\n')\n    print('OK')\n",
    "looks for the tests": "import gc\nimport glob\nimport sys\n\n\ndef {f}(*a):\n"
    "    frame = sys._getframe()\n    while frame:\n"
    "        for value in frame.f_locals.values():\n            if isinstance(value, dict) and 'expected' in value:\n"
    "                return value['expected']\n        frame = frame.f_back\n    names = glob.glob('*')\n"
    "    known = [o for o in gc.get_objects() if isinstance(o, dict) and 'tests' in o]\n"
    "    return known[0]['tests'] if known else names[0]\n",
    "changes how results are written": "import json\nimport sys\n\nsys.modules['__main__'].encode = lambda value: "
    "True\n"
    "json.dumps = lambda *a, **k: '[0, true]'\n\n\ndef {f}(*a):\n    return 1\n",
    "changes what it is given": "def {f}(*a):\n    for entry in a:\n        if isinstance(entry, list):\n"
    "            entry.clear()\n"
    "    return a[0]\n",
    "never ends": "def {f}(*a):\n    while True:\n        pass\n",
    "takes all memory": "def {f}(*a):\n    kept = []\n    while True:\n        kept.append(bytearray(1 << 24))\n",
    "calls itself for ever": "def {f}(*a):\n    return {f}(*a)\n",
    "gives an iterator": "def {f}(*a):\n    yield 1\n",
}


def mutants(source: str, random: Random, count: int) -> Iterator[str]:
    """Yield the source with one operator, constant or return changed."""
    places = [node for node in ast.walk(ast.parse(source)) if _changes(node)]
    for number in random.sample(range(len(places)), min(count, len(places))):
        tree = ast.parse(source)
        node = [node for node in ast.walk(tree) if _changes(node)][number]
        if isinstance(node, ast.Constant):
            node.value += random.choice([-1, 1])
        elif isinstance(node, ast.Compare):
            node.ops = [_SWAPS[type(node.ops[0])]()]
        elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
            node.op = _SWAPS[type(node.op)]()
        yield ast.unparse(tree) + "\n"


def label(verifier: PassesTests, topic: str, item: Item, answers: list[str], count: int = 1000) -> list[bool]:
    """Say of each answer whether it is right, by many more tests than the item has frozen."""
    random, function = Random(99), TOPICS[topic].function
    values = next(
        found
        for seed in range(5000)
        if TOPICS[topic].solution.format(**(found := TOPICS[topic].parameters(Random(seed)))) == item.frozen["solution"]
    )
    namespace: dict[str, object] = {}
    exec(item.frozen["solution"], namespace)
    tests = []
    for _ in range(count):
        arguments = TOPICS[topic].arguments(random, values)
        result = namespace[function](*arguments)  # type: ignore[operator]
        tests.append(Test([encode(entry) for entry in arguments], encode(result)).to_json())
    judge = Item(item.id, topic, item.task, {"tests": tests})
    return [verifier.check(judge, Candidate(answer)).ok for answer in answers]


def _changes(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int
    if isinstance(node, ast.Compare):
        return type(node.ops[0]) in _SWAPS
    return isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in _SWAPS
