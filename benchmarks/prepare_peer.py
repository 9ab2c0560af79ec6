"""datatrove's side of benchmarks/prepare.py: CPU seconds of each of its stages, in an environment of its own.

    python benchmarks/prepare_peer.py WORK_FOLDER

Reads pages.jsonl (`html`) and texts.jsonl (`text`) of the folder and prints one JSON object. Needs datatrove with
trafilatura, spacy, ftfy and xxhash below 4; nothing of isthmus.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.utils.hashing import HashConfig


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measured(work: Callable[[], Any]) -> tuple[float, Any]:
    before = cpu_seconds()
    result = work()
    return cpu_seconds() - before, result


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def run(step: Any, documents: list[Document]) -> list[Document]:
    return list(step.run(iter(documents), 0, 1))


def texts(folder: Path) -> list[Document]:
    return [Document(text=row["text"], id=str(number)) for number, row in enumerate(rows(folder / "texts.jsonl"))]


def deduplicate(documents: list[Document], folder: Path) -> list[Document]:
    config = MinhashConfig(hash_config=HashConfig(precision=64))
    signature = MinhashDedupSignature(str(folder / "signatures"), config)
    signature.run(iter(documents), 0, 1)
    for rank in range(config.num_buckets):
        MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config).run(
            None, rank, config.num_buckets
        )
    MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config).run(None, 0, 1)
    return run(MinhashDedupFilter(str(folder / "remove")), documents)


def main() -> None:
    folder = Path(sys.argv[1])
    pages = rows(folder / "pages.jsonl")
    found: dict[str, Any] = {"stages": {}, "left": {}}

    def stage(name: str, work: Callable[[], list[Document]]) -> list[Document]:
        seconds, left = measured(work)
        found["stages"][name] = seconds
        found["left"][name] = len(left)
        return left

    documents = [Document(text=row["html"], id=str(number)) for number, row in enumerate(pages)]
    run(Trafilatura(timeout=60), documents[:2])  # imports
    stage("extract", lambda: run(Trafilatura(timeout=60), documents))
    warm: Iterator[Any] = iter([GopherRepetitionFilter(), GopherQualityFilter(), FineWebQualityFilter()])
    for step in warm:
        run(step, texts(folder)[:2])
    left = texts(folder)
    left = stage("normalise", lambda: run(FTFYFormatter(), left))
    left = stage("gopher_repetition", lambda: run(GopherRepetitionFilter(), left))
    left = stage("gopher_quality", lambda: run(GopherQualityFilter(), left))
    left = stage("c4", lambda: run(C4QualityFilter(filter_no_terminal_punct=False), left))
    left = stage("fineweb", lambda: run(FineWebQualityFilter(), left))
    with tempfile.TemporaryDirectory() as scratch:
        left = stage("minhash", lambda: deduplicate(left, Path(scratch)))
    stage("pii", lambda: run(PIIFormatter(), left))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
