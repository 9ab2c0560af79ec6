"""The preparation from beginning to end: collect, deduplicate, tokenize, assemble; each resumes where it was."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.dedup.benchmarks import benchmark_hashes
from isthmus.data.dedup.components import survivors
from isthmus.data.dedup.pairs import Corpus
from isthmus.data.prepare.assemble import ShardPlan, finished_shard, plan_shards
from isthmus.data.prepare.config import PrepareConfig
from isthmus.data.prepare.folder import PLAN, REJECTS, REPORT, SUMMARY, WorkFolder
from isthmus.data.prepare.pool import Pool
from isthmus.data.prepare.progress import Progress, source_of
from isthmus.data.prepare.report import write_report
from isthmus.data.prepare.statistics import Statistics
from isthmus.data.prepare.units import Unit
from isthmus.data.prepare.validate import Plan, plan_preparation
from isthmus.data.prepare.worker import Assemble, Collect, FindPairs, Task, Tokenize
from isthmus.data.shards.dataset import Dataset
from isthmus.data.shards.imports import dataset_manifest
from isthmus.data.shards.index import token_dtype
from isthmus.data.shards.manifest import (
    DATASET_MANIFEST,
    SHARD_SUFFIX,
    read_dataset_manifest,
    write_dataset_manifest,
)
from isthmus.data.shards.packing import fills
from isthmus.data.tokenizers import describe
from isthmus.errors import UserError
from isthmus.files import new_file, write_atomically, write_json


@dataclass(frozen=True)
class Outcome:
    """What a preparation gave: statistics by source, and whether it was there already."""

    folder: Path
    sources: dict[str, Statistics]
    documents: int
    tokens: int
    shards: int
    already: bool = False
    packed: dict[int, float] = field(default_factory=dict)  # by sequence length, how full windows are


def prepare(config: PrepareConfig, progress: Progress) -> Outcome:
    """Prepare a dataset, or go on where an earlier run stopped.

    Raises:
        UserError: the configuration or input is wrong, `out` holds something else, or too much was rejected.
    """
    plan = plan_preparation(config)
    folder = WorkFolder(Path(str(config.out)).expanduser())
    if (folder.out / DATASET_MANIFEST).exists():
        return _already(folder, plan)
    with folder.lock():
        folder.create()
        folder.remove_leftovers()
        _check_plan(folder, plan)
        workers = config.workers or os.cpu_count() or 1
        with Pool(workers, config.data, folder) as pool:
            return _Preparation(config, plan, folder, pool, progress).run()


class _Preparation:
    def __init__(self, config: PrepareConfig, plan: Plan, folder: WorkFolder, pool: Pool, progress: Progress) -> None:
        self._data, self._plan, self._folder = config.data, plan, folder
        self._pool, self._progress = pool, progress
        self._units = plan.units
        self._dtype = token_dtype(plan.tokenizer.size)

    def run(self) -> Outcome:
        self._collect()
        corpus = self._corpus()
        self._deduplicate(corpus)
        self._tokenize(corpus)
        shards = self._assemble()
        return self._conclude(shards)

    def _collect(self) -> None:
        """Work on every unit; again on those that hold a page which ended a process in another one meanwhile."""
        while True:
            tasks = [Collect(unit) for unit in self._units if not self._done(self._folder.documents, unit)]
            if not tasks:
                break
            self._folder.clear(self._folder.dedup)
            self._run("collect", tasks, lambda task: task.unit.bytes)
            if backstop := self._folder.backstop():
                for unit in self._units:
                    if self._outdated(unit, set(backstop)):
                        self._folder.forget(self._folder.documents, unit.name)

    def _outdated(self, unit: Unit, backstop: set[str]) -> bool:
        """Say whether a unit judged a page on its merits that is in the journal now."""
        seen = set(np.fromfile(self._folder.documents / f"{unit.name}.seen", dtype="<u8").tolist())
        inside = {page for page in backstop if int.from_bytes(bytes.fromhex(page)[:8], "little") in seen}
        summary = self._folder.summary(self._folder.documents, unit.name) or {}
        return inside != set(summary["backstopped"])

    def _corpus(self) -> Corpus:
        summaries = [self._folder.summary(self._folder.documents, unit.name) or {} for unit in self._units]
        prefixes = [self._folder.documents / unit.name for unit in self._units]
        return Corpus.of(prefixes, [int(summary["documents"]) for summary in summaries])

    def _deduplicate(self, corpus: Corpus) -> None:
        folder, dedup = self._folder, self._data.dedup
        if folder.summary(folder.dedup, "fates"):
            return
        folder.clear(folder.tokens)
        for path in folder.out.glob(f"*{SHARD_SUFFIX}"):
            path.unlink()
        tasks: list[FindPairs] = []
        bands: list[int | None] = [*([None] if dedup.exact else []), *(range(dedup.bands) if dedup.minhash else [])]
        for band in bands:
            for part in range(corpus.ranges):
                name = f"{'equal' if band is None else f'band-{band:03d}'}-{part:05d}"
                tasks.append(FindPairs(name, corpus, band, part, dedup.threshold))
        waiting: list[Task] = [task for task in tasks if not (folder.dedup / f"{task.name}.npy").exists()]
        self._run("deduplicate", waiting, lambda task: 1)
        found = {task: folder.dedup / f"{task.name}.npy" for task in tasks}
        result = survivors(
            corpus,
            (np.load(path) for task, path in found.items() if task.band is None),
            (np.load(path) for task, path in found.items() if task.band is not None),
        )
        copies = np.array(sorted(result.copies.items()), dtype=np.int64).reshape(-1, 2)
        for name, array in (("fates", result.fates), ("copies", copies)):
            with new_file(folder.dedup / f"{name}.npy") as file:
                np.save(file, array, allow_pickle=False)
        folder.finish(folder.dedup, "fates", {"documents": corpus.documents})

    def _tokenize(self, corpus: Corpus) -> None:
        tasks: list[Task] = [
            Tokenize(unit, start, stop)
            for unit, start, stop in zip(self._units, corpus.starts, corpus.starts[1:], strict=False)
            if not self._done(self._folder.tokens, unit)
        ]
        self._run("tokenize", tasks, lambda task: task.stop - task.start)

    def _assemble(self) -> list[ShardPlan]:
        plans = []
        for source in sorted(self._data.sources):
            units = [unit.name for unit in self._units if unit.source == source]
            plans += plan_shards(source, units, self._folder, self._data.shards.tokens)
        tasks: list[Task] = [
            Assemble(plan, self._dtype.str) for plan in plans if not finished_shard(self._folder, plan)
        ]
        self._run("write", tasks, lambda task: 1)
        return plans

    def _conclude(self, shards: list[ShardPlan]) -> Outcome:
        sources = self._statistics()
        _write_rejects(self._folder, self._units)
        manifests = [finished_shard(self._folder, shard) for shard in shards]
        whole = [manifest for manifest in manifests if manifest is not None]
        assert len(whole) == len(shards)
        outcome = Outcome(
            self._folder.out,
            sources,
            documents=sum(manifest.documents for manifest in whole),
            tokens=sum(manifest.tokens for manifest in whole),
            shards=len(whole),
            packed=fills(whole),
        )
        self._copy_tokenizer()
        write_json(self._folder.out / SUMMARY, {name: vars(statistics) for name, statistics in sources.items()})
        write_report(self._folder.out / REPORT, sources, self._plan.config_hash, outcome.packed)
        _check_rejects(self._folder, sources, self._data.max_reject_fraction)
        if not outcome.documents:
            raise UserError(
                "nothing remains", where="data", fix=f"see which rules dropped it in {self._folder.out / REPORT}"
            )
        manifest = dataset_manifest(
            whole,
            config=self._plan.config_hash,
            tokenizer=describe(self._plan.tokenizer),
            inputs=self._plan.inputs,
            libraries=self._plan.libraries,
            decontaminated=benchmark_hashes(self._data.decontaminate.files, self._data.decontaminate.ngram),
        )
        write_dataset_manifest(self._folder.out, manifest)
        self._folder.remove_work()
        return outcome

    def _copy_tokenizer(self) -> None:
        """Leave the tokenizer's file beside the tokens that only it can read."""
        path = str(self._data.tokenizer.path)
        if not path.startswith("tiktoken:"):
            file = Path(path).expanduser()
            write_atomically(self._folder.out / f"tokenizer{file.suffix}", file.read_bytes())

    def _statistics(self) -> dict[str, Statistics]:
        """Add up what the first and third stage counted; documents and bytes kept are those of the third."""
        sources = {name: Statistics() for name in sorted(self._data.sources)}
        for unit in self._units:
            mine = sources[unit.source]
            for stage in (self._folder.documents, self._folder.tokens):
                summary = self._folder.summary(stage, unit.name)
                assert summary is not None
                part = Statistics(**summary["statistics"])
                if stage == self._folder.documents:
                    part.kept = part.kept_bytes = 0
                mine.add(part, self._data.samples)
        return sources

    def _done(self, stage: Path, unit: Unit) -> bool:
        return self._folder.summary(stage, unit.name) is not None

    def _run(self, stage: str, tasks: list[Any], size: Callable[[Any], int]) -> None:
        totals: dict[str, int] = {}
        for task in tasks:
            totals[source_of(task)] = totals.get(source_of(task), 0) + size(task)
        with self._progress.stage(stage, totals) as shown:

            def done(task: Task) -> None:
                unit = getattr(task, "unit", None)
                folder = {"collect": self._folder.documents, "tokenize": self._folder.tokens}.get(stage)
                summary = self._folder.summary(folder, unit.name) if folder and unit else None
                shown.finish(task, size(task), summary)

            self._pool.run(tasks, done, shown.advance, self._journal)

    def _journal(self, page: bytes, reason: str) -> None:
        self._folder.add_to_backstop(page, reason)
        self._progress.note(f"input {page.hex()} {reason}: it is dropped, now and in later runs")


def _check_plan(folder: WorkFolder, plan: Plan) -> None:
    """Begin a work folder, or make sure that it was begun for the same result.

    Raises:
        UserError: it was begun with another configuration, tool or input, or an input file changed since.
    """
    path = folder.work / PLAN
    mine = {"config": plan.config_hash, "stamps": plan.stamps}
    try:
        before = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        write_json(path, mine)
        return
    fix = f"choose another out, or delete {folder.work} to begin anew"
    if before["config"] != plan.config_hash:
        raise UserError("was begun with another configuration, tool or input", where=str(folder.out), fix=fix)
    changed = [name for name, stamp in plan.stamps.items() if before["stamps"].get(name) != stamp]
    if changed:
        raise UserError(f"{changed[0]} changed since the work began", where=str(folder.out), fix=fix)


def _already(folder: WorkFolder, plan: Plan) -> Outcome:
    manifest = read_dataset_manifest(folder.out)
    if manifest.config != plan.config_hash:
        raise UserError("holds another dataset", where=str(folder.out), fix="choose another out")
    content = json.loads((folder.out / SUMMARY).read_text("utf-8"))
    folder.remove_work()  # a run that was killed in its last moment leaves it
    return Outcome(
        folder.out,
        {name: Statistics(**values) for name, values in content.items()},
        documents=sum(counts["documents"] for counts in manifest.sources.values()),
        tokens=sum(counts["tokens"] for counts in manifest.sources.values()),
        shards=len(manifest.shards),
        already=True,
        packed=fills(Dataset(folder.out).shards),
    )


def _write_rejects(folder: WorkFolder, units: list[Unit]) -> None:
    with new_file(folder.out / REJECTS) as file:
        for unit in units:
            with (folder.documents / f"{unit.name}.rejects.jsonl").open("rb") as part:
                shutil.copyfileobj(part, file)


def _check_rejects(folder: WorkFolder, sources: dict[str, Statistics], limit: float) -> None:
    rejected = sum(statistics.rejected for statistics in sources.values())
    records = sum(statistics.records for statistics in sources.values()) + rejected
    if records and rejected / records > limit:
        raise UserError(
            f"{rejected} of {records} records ({rejected / records:.1%}) could not be read, {limit:.1%} are allowed",
            where="data.max_reject_fraction",
            fix=f"see {folder.out / REJECTS}; with a higher limit the same command ends at once",
        )
