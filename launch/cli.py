"""The `isthmus` command: one verb, then options and Hydra overrides."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from isthmus import __version__
from isthmus.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR

_USAGE = """\
isthmus VERB [overrides]

Verbs:
  train    pre-train in this process
  launch   start several ranks on this machine: isthmus launch launch.processes=4 [overrides of train]
  lab      several sites on this machine, over links as thin as you like: isthmus lab sync=local [overrides]
  data     prepare, inspect or import token shards, train a tokenizer: isthmus data prepare data=FILE.yaml out=DIR

`isthmus VERB --help` shows the configuration groups and keys.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code."""
    # Before torch is loaded: OpenMP threads that spin while waiting make a run ten times slower beside a busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Until a run listens for itself: an exception raised in the middle of an import can be swallowed there.
    signal.signal(signal.SIGINT, _leave)
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return EXIT_OK if words else EXIT_USER_ERROR
    if words[0] == "--version":
        print(f"isthmus {__version__}")
        return EXIT_OK
    verbs: dict[str, Callable[[Sequence[str]], int]] = {"train": _train, "launch": _launch, "lab": _lab, "data": _data}
    if words[0] not in verbs:
        print(f"isthmus: there is no verb '{words[0]}'; choose one of: {', '.join(verbs)}", file=sys.stderr)
        return EXIT_USER_ERROR
    return verbs[words[0]](words[1:])


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"isthmus: interrupted before the first step\n")
    os._exit(EXIT_INTERRUPTED)


def _train(words: Sequence[str]) -> int:
    from isthmus.train.entry import main

    return main(words)


def _launch(words: Sequence[str]) -> int:
    from isthmus.launch.local import main

    return main(words)


def _lab(words: Sequence[str]) -> int:
    from isthmus.launch.lab.command import main

    return main(words)


def _data(words: Sequence[str]) -> int:
    from isthmus.launch.data.command import main

    return main(words)


if __name__ == "__main__":
    sys.exit(main())
