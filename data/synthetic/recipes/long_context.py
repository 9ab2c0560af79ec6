"""Long documents with something to do at their end that takes the whole of them, in buckets of length."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from isthmus.config import key
from isthmus.data.synthetic.context import Context
from isthmus.data.synthetic.protocols import Candidate, Item, Prompt, Verdict, Verifier, digest
from isthmus.data.synthetic.recipes.long_tasks import LongTask, Needles, Questions, Summaries
from isthmus.data.synthetic.recipes.windows import Windows
from isthmus.errors import UserError

KINDS = ("needle", "needles", "questions", "summaries")
_SMALLEST, _LARGEST = 1_000, 1_000_000
_ROOM = 0.85  # of a bucket is the long text; the rest is for what follows it
_ROOM_OF_SUMMARIES = 0.74  # each level takes a fifth of the one below: together a quarter of the text


@dataclass(kw_only=True, slots=True)
class LongContextOptions:
    kinds: list[str] = key(list(KINDS), "needle (one fact), needles (several), questions, summaries")
    buckets: list[int] = key([4096, 8192, 16384, 32768, 65536, 131072], "largest lengths of documents in tokens")
    chunk_tokens: int = key(8192, "parts that questions and summaries are about; at most a third of the bucket")
    needles: int = key(4, "facts of the kind needles")
    questions: int = key(8, "most questions of a document")
    fan: int = key(4, "summaries that are summed up together")
    passes: int = key(1, "how often the seeds are gone through, each time in another order")


class LongContextRecipe:
    """Each item is a window of real text and a task; kinds alternate within a bucket."""

    name = "long_context"
    version = 1

    def __init__(self, options: LongContextOptions, context: Context) -> None:
        self._options, self._context = options, context
        for kind in options.kinds:
            if kind not in KINDS:
                raise UserError(
                    f"there is no kind '{kind}'", where="data.options.kinds", fix=f"choose of: {', '.join(KINDS)}"
                )
        checks = {
            "kinds": bool(options.kinds),
            "buckets": bool(options.buckets) and all(_SMALLEST <= size <= _LARGEST for size in options.buckets),
            "chunk_tokens": options.chunk_tokens >= 100,
            "needles": 2 <= options.needles <= 20,
            "questions": options.questions >= 1,
            "fan": options.fan >= 2,
            "passes": options.passes >= 1,
        }
        for name, fine in checks.items():
            if not fine:
                raise UserError(f"is {getattr(options, name)}", where=f"data.options.{name}", fix="see --help")
        self._tasks = {bucket: self._of_bucket(bucket) for bucket in options.buckets}
        self.verifiers: Sequence[Verifier] = (_Task(self), _Bucket(self))

    def items(self) -> Iterator[Item]:
        """Yield items until the seeds have no text left for the next bucket."""
        kinds, buckets = self._options.kinds, self._options.buckets
        windows = Windows(self._context.documents, self._context.count_tokens, self._context.seed, self._options.passes)
        number = 0
        while True:
            kind, bucket = kinds[number % len(kinds)], buckets[number // len(kinds) % len(buckets)]
            window = windows.take(int(bucket * (_ROOM_OF_SUMMARIES if kind == "summaries" else _ROOM)))
            if window is None:
                return
            task, frozen = self.task(kind, bucket).make(window, Random(digest([self._context.seed, number])))
            about = {"kind": kind, "bucket": bucket}
            yield Item(f"{kind}/{bucket}/{number:06d}", f"{kind} {bucket}", {**task, **about}, frozen, window.parents)
            number += 1

    def task(self, kind: str, bucket: int) -> LongTask:
        return self._tasks[bucket][kind]

    def write(self, task: Mapping[str, Any]) -> Generator[Sequence[Prompt], Sequence[str], str]:
        return self.task(str(task["kind"]), int(task["bucket"])).write(task)

    def repair(self, task: Mapping[str, Any], text: str, verdict: Verdict) -> Prompt | None:
        return None  # a second look at the whole text costs what another try does

    def document(self, item: Item, text: str) -> str:
        ending = self.task(str(item.task["kind"]), int(item.task["bucket"])).ending(item, text)
        return f"{item.task['text']}\n\n{ending}"

    def template(self, item: Item, prompt: Prompt, random: Random) -> str:
        return self.task(str(item.task["kind"]), int(item.task["bucket"])).template(item, prompt, random)

    def tokens(self, text: str) -> int:
        return self._context.count_tokens(text)

    def _of_bucket(self, bucket: int) -> dict[str, LongTask]:
        options, count = self._options, self._context.count_tokens
        chunk = min(options.chunk_tokens, bucket // 3)
        return {
            "needle": Needles(1),
            "needles": Needles(options.needles),
            "questions": Questions(count, chunk, options.questions),
            "summaries": Summaries(count, chunk, options.fan),
        }


class _Task:
    """What the kind of task checks."""

    name = "task"
    version = 1
    quick = True

    def __init__(self, recipe: LongContextRecipe) -> None:
        self._recipe = recipe

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        return self._recipe.task(str(item.task["kind"]), int(item.task["bucket"])).check(item, candidate)


class _Bucket:
    """The document fits its bucket, and is longer than the next smaller one would be."""

    name = "bucket"
    version = 1
    quick = True

    def __init__(self, recipe: LongContextRecipe) -> None:
        self._recipe = recipe

    def check(self, item: Item, candidate: Candidate) -> Verdict:
        bucket = int(item.task["bucket"])
        tokens = self._recipe.tokens(self._recipe.document(item, candidate.text))
        reason = (
            "longer than its bucket"
            if tokens > bucket
            else "shorter than half its bucket"
            if tokens < bucket / 2
            else ""
        )
        return Verdict(not reason, reason, {"tokens": tokens})
