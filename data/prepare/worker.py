"""A process that works on units: it may die at any page, and nothing is lost but the unit in hand."""

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.dedup.benchmarks import load_benchmarks
from isthmus.data.dedup.pairs import Corpus, equal_texts, near_duplicates
from isthmus.data.filters.urls import UrlLists, load_lists
from isthmus.data.prepare.assemble import ShardPlan, assemble_shard
from isthmus.data.prepare.collect import collect_unit
from isthmus.data.prepare.config import PrepareData, SourceKind
from isthmus.data.prepare.documents import Shared
from isthmus.data.prepare.folder import WorkFolder
from isthmus.data.prepare.guard import Guard
from isthmus.data.prepare.tokenize import tokenize_unit
from isthmus.data.prepare.units import Unit
from isthmus.data.tokenizers import load_text_tokenizer
from isthmus.data.transcripts.document import load_videos
from isthmus.errors import UserError
from isthmus.files import new_file
from isthmus.processes import die_with_parent

_PROGRESS_SECONDS = 0.25


@dataclass(frozen=True)
class Collect:
    unit: Unit


@dataclass(frozen=True)
class FindPairs:
    """One band (None: equal texts) and one range of its hashes."""

    name: str
    corpus: Corpus
    band: int | None
    part: int
    threshold: float


@dataclass(frozen=True)
class Tokenize:
    unit: Unit
    start: int
    stop: int


@dataclass(frozen=True)
class Assemble:
    plan: ShardPlan
    dtype: str


Task = Collect | FindPairs | Tokenize | Assemble
Progress = Callable[[int, int], None]


def guard_path(folder: WorkFolder, slot: int) -> Path:
    return folder.work / f"page-{slot}"


class Worker:
    """Carries tasks out; what they share (lists, metadata, tokenizer) is loaded when first needed."""

    def __init__(self, config: PrepareData, out: Path, slot: int) -> None:
        self._config, self._folder = config, WorkFolder(out)
        self._guard = Guard(guard_path(self._folder, slot), config.web.cpu_seconds)
        self._shared: dict[str, Shared] = {}
        self._tokenizer: Any = None

    def run(self, task: Task, progress: Progress) -> None:
        config, folder = self._config, self._folder
        if isinstance(task, Collect):
            backstop = set(folder.backstop())
            collect_unit(task.unit, config, folder, self._share(task.unit.source), self._guard, backstop, progress)
        elif isinstance(task, FindPairs):
            ranges = task.corpus.ranges
            if task.band is None:
                pairs = equal_texts(task.corpus, task.part, ranges)
            else:
                pairs = near_duplicates(task.corpus, task.band, task.part, ranges, task.threshold)
            with new_file(folder.dedup / f"{task.name}.npy") as file:
                np.save(file, pairs, allow_pickle=False)
            progress(len(pairs), 0)
        elif isinstance(task, Tokenize):
            if self._tokenizer is None:
                self._tokenizer = load_text_tokenizer(config.tokenizer.path, config.tokenizer.end_of_document)
            tokenize_unit(
                task.unit, task.start, task.stop, folder, self._tokenizer, config.seed, config.samples, progress
            )
        else:
            assemble_shard(task.plan, folder, np.dtype(task.dtype), config.shards.pack)

    def _share(self, source: str) -> Shared:
        if source not in self._shared:
            config = self._config
            first = next(iter(self._shared.values()), None)
            is_web = config.sources[source].kind is SourceKind.web
            self._shared[source] = Shared(
                urls=load_lists(config.web.urls) if is_web else UrlLists(),
                benchmarks=first.benchmarks
                if first
                else load_benchmarks(config.decontaminate.files, config.decontaminate.ngram),
                videos=load_videos(config.sources[source].metadata, f"data.sources.{source}.metadata"),
            )
        return self._shared[source]


def worker_main(connection: Connection, config: PrepareData, out: Path, slot: int) -> None:
    """Serve tasks until None comes or the parent ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    worker = Worker(config, out, slot)
    while (task := connection.recv()) is not None:
        try:
            progress = _Sender(connection)
            worker.run(task, progress)
            progress.flush()
            connection.send(("done", None))
        except UserError as error:
            connection.send(("refused", (error.what, error.where, error.fix)))
        except OSError as error:
            connection.send(("refused", (f"{type(error).__name__}: {error}", "input or output", "see to it and go on")))
        except Exception:
            connection.send(("failed", traceback.format_exc()))


class _Sender:
    """A progress function that sends sums a few times a second, and the rest at the end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._items = self._amount = 0
        self._sent = time.monotonic()

    def __call__(self, items: int, amount: int) -> None:
        self._items += items
        self._amount += amount
        if time.monotonic() - self._sent >= _PROGRESS_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._connection.send(("progress", (self._items, self._amount)))
        self._items = self._amount = 0
        self._sent = time.monotonic()
