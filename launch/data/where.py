"""`isthmus data where`: the documents of a batch, with their lineage."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from isthmus.config import load_resolved
from isthmus.data.audit import attempts
from isthmus.data.config import Packing
from isthmus.data.corpus import build_corpus
from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.words import Words
from isthmus.train.config import Config

_USAGE = """\
isthmus data where RUN/SITE --step N [--rank R] [--json]

List the samples that a step trained on, the window of its source that each was, and the documents in it.

Options:
  --step N   the step, counted from 1 as in metrics.jsonl
  --rank R   one data-parallel rank of this site (default: all of this site)
"""


def main(argv: Sequence[str]) -> int:
    """Print the documents of a batch.

    Raises:
        UserError: the run has no record of its data, did not reach the step, or its data has changed since.
    """
    words = Words(argv, verb="data where", flags=("--json",), options=("--step", "--rank"))
    if words.help:
        print(_USAGE, end="")
        return EXIT_OK
    if len(words.rest) != 1:
        raise UserError("give one folder", where="data where", fix="isthmus data where RUN/SITE --step N")
    folder = Path(words.rest[0]).expanduser()
    step = words.number("--step", 0)
    made = attempts(folder)
    if step < 1:
        raise UserError("is not given", where="--step", fix="name a step from 1 on, as in metrics.jsonl")
    attempt = [entry for entry in made if entry.step < step][-1]
    config = load_resolved(Config, folder / "config.yaml")
    site = config.sites.names.index(config.sites.name) if config.sites.name in config.sites.names else 0
    ranks = range(attempt.division.ranks)
    if words.value("--rank") is not None:
        if words.number("--rank", 0) not in ranks:
            raise UserError(f"there are {len(ranks)} data-parallel ranks", where="--rank", fix="count from 0")
        ranks = range(words.number("--rank", 0), words.number("--rank", 0) + 1)
    samples = [
        (rank, sample) for rank in ranks for sample in attempt.division.of_rank(attempt.samples(step), site, rank)
    ]
    rows = _describe(config, attempt.log.entries[-1].mixture["sources"], attempt.log.order(), samples)
    if words.flag("--json"):
        print(json.dumps({"step": step, "samples": rows}, default=_plain))
        return EXIT_OK
    console = Console(soft_wrap=True)
    for row in rows:
        phase = f" ({row['phase']})" if row["phase"] else ""
        stretch = f", tokens {row['offset']} to {row['offset'] + row['tokens']}"
        console.print(
            f"sample {row['sample']}, rank {row['rank']}: {row['source']}{phase}, epoch {row['epoch']}, window "
            f"{row['window']}{'' if config.data.packing is Packing.best_fit else stretch}",
            highlight=False,
            markup=False,
        )
        for document in row["documents"]:
            about = json.dumps(document, default=_plain)
            console.print(f"  {about}", highlight=False, markup=False)
    return EXIT_OK


def _describe(config: Config, known: dict[str, Any], order: Any, samples: Sequence[tuple[int, int]]) -> list[dict]:
    corpus = build_corpus(config.data, config.model.vocab_size, config.train.sequence_length)
    length = config.train.sequence_length
    rows = []
    for rank, sample in samples:
        position = order[sample]
        source = corpus.sources.get(position.source)
        if source is None or source.fingerprint != known[position.source][0]:
            raise UserError(
                "is not what the run read", where=f"data.sources.{position.source}", fix="restore the data of the run"
            )
        spans = source.train.documents(position.offset, length)
        documents = [{"tokens": [span.start, span.stop], **span.about} for span in spans]
        rows.append({"sample": sample, "rank": rank, "tokens": length, "documents": documents, **vars(position)})
    return rows


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else str(value)
