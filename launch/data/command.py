"""`isthmus data`: one sub-verb, then its options."""

import sys
from collections.abc import Sequence

from isthmus.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, UserError
from isthmus.launch.verbs import run_verb

_USAGE = """\
isthmus data SUBVERB ...

  prepare    raw web archives, transcripts and texts to token shards: isthmus data prepare data=FILE.yaml out=DIR
  synthesize synthetic text that is verified and judged: isthmus data synthesize data=RECIPE out=DIR
  mix        what a mixture will serve: isthmus data mix data=FILE.yaml train.tokens=N [--html FILE]
  where      the documents of a batch: isthmus data where RUN/SITE --step N [--rank R]
  audit      whether every sample was consumed once: isthmus data audit RUN
  inspect    what is in a dataset: isthmus data inspect DIR [--sample 5] [--verify]
  tokenizer  train a byte-level BPE: isthmus data tokenizer out=FILE.json text=PATH [vocab_size=32768]
  pack       pack whole documents into samples: isthmus data pack DIR sequence_length=N
  import     use Megatron's .bin and .idx where they lie: isthmus data import PREFIX ... out=DIR

`isthmus data SUBVERB --help` says more.
"""


_SUBVERBS = {
    "prepare": "prepare",
    "synthesize": "synthesize",
    "mix": "mix",
    "where": "where",
    "audit": "audit",
    "inspect": "inspect",
    "tokenizer": "tokenizer",
    "pack": "pack",
    "import": "imports",
}


def main(argv: Sequence[str]) -> int:
    """Run a sub-verb and return its exit code."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return EXIT_OK if words else EXIT_USER_ERROR
    if words[0] not in _SUBVERBS:
        choices = ", ".join(_SUBVERBS)
        print(f"isthmus: there is no sub-verb '{words[0]}' of data; choose one of: {choices}", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        return run_verb(f"launch.data.{_SUBVERBS[words[0]]}", words[1:])
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("isthmus: interrupted; finished work is kept, the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
