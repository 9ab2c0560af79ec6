"""The `isthmus` command: one verb, then options and Hydra overrides."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from isthmus import __version__
from isthmus.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from isthmus.launch.verbs import run_verb

_USAGE = """\
isthmus VERB [overrides]

Verbs:
  train    pre-train in this process
  launch   start all ranks, here or of many sites: isthmus launch launch.processes=4 [overrides of train]
  plan     from compute, sites, links and data to a run: isthmus plan plan.flops=1e24 cluster=FILE
  checkpoint  list, verify or export what a run has saved: isthmus checkpoint list runs/NAME
  lab      several sites on this machine, over links as thin as you like: isthmus lab sync=local [overrides]
  data     prepare, synthesize, mix, inspect or import token shards: isthmus data prepare data=FILE.yaml out=DIR

`isthmus VERB --help` shows the configuration groups and keys.
"""


_VERBS = {
    "train": "train.entry",
    "launch": "launch.command",
    "plan": "launch.plan.command",
    "lab": "launch.lab.command",
    "data": "launch.data.command",
    "checkpoint": "launch.checkpoints",
}


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
    if words[0] not in _VERBS:
        print(f"isthmus: there is no verb '{words[0]}'; choose one of: {', '.join(_VERBS)}", file=sys.stderr)
        return EXIT_USER_ERROR
    return run_verb(_VERBS[words[0]], words[1:])


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"isthmus: interrupted before the first step\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
