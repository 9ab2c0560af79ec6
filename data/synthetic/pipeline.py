"""From a recipe file to a source: items are worked on, what is accepted is prepared; each part resumes where it was."""

import contextlib
import fcntl
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.data.prepare.folder import REPORT
from isthmus.data.prepare.statistics import Statistics as Prepared
from isthmus.data.shards.manifest import DATASET_MANIFEST, read_dataset_manifest
from isthmus.data.synthetic.budget import Budget
from isthmus.data.synthetic.config import SynthesizeConfig
from isthmus.data.synthetic.generators.build import OpenSampler
from isthmus.data.synthetic.journal import JOURNAL, Journal, Spent, spent_in
from isthmus.data.synthetic.journey import Journey, journey
from isthmus.data.synthetic.plan import Plan, plan_synthesis
from isthmus.data.synthetic.progress import SynthesisProgress
from isthmus.data.synthetic.report import write_report
from isthmus.data.synthetic.scheduler import Scheduler
from isthmus.data.synthetic.source import DOCUMENTS, build_source, publish, unpublish, write_documents
from isthmus.data.synthetic.statistics import Statistics
from isthmus.errors import UserError
from isthmus.files import write_json

PLAN = "plan.json"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Outcome:
    """What a synthesis gave. `finished` is False where the budget ended it; `already` where nothing was left to do."""

    folder: Path
    statistics: Statistics
    spent: Spent
    documents: int
    tokens: int
    finished: bool
    already: bool = False


def synthesize(
    config: SynthesizeConfig,
    progress: SynthesisProgress,
    *,
    secrets: Mapping[str, str],
    open_sampler: OpenSampler | None = None,
) -> Outcome:
    """Make a source, or go on where an earlier run stopped.

    Args:
        secrets: the environment, for API keys.
        open_sampler: from a checkpoint's path to a sampler.

    Raises:
        UserError: the configuration is wrong, a server gives up, or nothing was accepted.
    """
    plan = plan_synthesis(config, secrets=secrets, open_sampler=open_sampler)
    with contextlib.closing(plan), folder_lock(plan.out), contextlib.closing(_journal(plan)) as journal:
        return _Synthesis(plan, journal, config.workers, progress).run()


@contextlib.contextmanager
def folder_lock(out: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    try:
        (out / "work").mkdir(parents=True, exist_ok=True)
        file = (out / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot be written: {error}", where="out", fix="choose another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another command is writing to it", where=str(out), fix="wait for it") from None
        yield


def _journal(plan: Plan) -> Journal:
    """Open the journal of a folder that was begun with the same recipe.

    Raises:
        UserError: it was begun with another one.
    """
    path = plan.out / PLAN
    if path.exists():
        if json.loads(path.read_text("utf-8"))["hash"] != plan.hash:
            raise UserError(
                "was begun with another recipe, generator or tool",
                where=str(plan.out),
                fix="choose another out; items, budget and speed may change, nothing else",
            )
    elif (plan.out / DATASET_MANIFEST).exists():
        raise UserError("holds another dataset", where=str(plan.out), fix="choose another out")
    else:
        write_json(path, {"hash": plan.hash})
    return Journal(plan.out / JOURNAL)


class _Synthesis:
    def __init__(self, plan: Plan, journal: Journal, workers: int, progress: SynthesisProgress) -> None:
        self._plan, self._journal, self._workers, self._progress = plan, journal, workers, progress
        self._statistics = Statistics(examples_each=plan.data.examples)

    def run(self) -> Outcome:
        for outcome in self._journal.finished(self._plan.data.items):
            self._statistics.add(outcome)
        finished = self._work()
        if (found := self._already(finished)) is not None:
            return found
        return self._conclude(finished)

    def _work(self) -> bool:
        """Bring every item to its outcome; return False if the budget ended that."""
        plan = self._plan
        widest = max(max(generator.batch, generator.parallel) for generator in plan.generators.values())

        def ended(number: int, outcome: dict[str, Any]) -> None:
            self._statistics.add(outcome)
            self._progress.show(self._statistics, self._journal.spent)

        scheduler = Scheduler(
            plan.generators,
            self._journal,
            Budget(plan.data.budget, plan.prices, spent_in(plan.out, self._journal)),
            window=max(16, 4 * widest),
            checkers=self._workers,
            on_outcome=ended,
        )
        with self._progress.running(plan.data.items, self._statistics.items):
            return scheduler.run(self._journeys())

    def _journeys(self) -> Iterator[tuple[int, Journey]]:
        items = itertools.islice(self._plan.rules.recipe.items(), self._plan.data.items)
        for number, item in enumerate(items):
            if not self._journal.done(number, item.id):
                yield number, journey(number, item, self._plan.rules)

    def _already(self, finished: bool) -> Outcome | None:
        out = self._plan.out
        if not (out / DATASET_MANIFEST).exists() or not (out / SUMMARY).exists():
            return None
        known = json.loads((out / SUMMARY).read_text("utf-8"))
        if known["settings"] != self._settings() or known["items"] != self._statistics.items:
            return None
        shutil.rmtree(out / "work", ignore_errors=True)
        counts = read_dataset_manifest(out).sources[self._plan.source]
        return Outcome(
            out, self._statistics, self._journal.spent, counts["documents"], counts["tokens"], finished, already=True
        )

    def _settings(self) -> dict[str, Any]:
        """Return what the dataset depends on beside the journal, as JSON gives it back."""
        found: dict[str, Any] = json.loads(json.dumps({**self._plan.settings, "asked": self._plan.data.items}))
        return found

    def _conclude(self, finished: bool) -> Outcome:
        plan, out, work = self._plan, self._plan.out, self._plan.out / "work"
        unpublish(out)
        accepted = write_documents(out / DOCUMENTS, plan, self._journal)
        if not accepted:
            write_report(out / REPORT, plan, self._statistics, self._journal.spent, Prepared(), finished)
            raise UserError(
                f"none of {self._statistics.tries} tries was accepted",
                where="data",
                fix=f"see the reasons in {out / REPORT}",
            )
        built, prepared = build_source(out / DOCUMENTS, plan, work, self._workers, self._progress.console)
        write_report(out / REPORT, plan, self._statistics, self._journal.spent, prepared, finished)
        statistics = self._statistics
        summary = {
            "settings": self._settings(),
            "items": statistics.items,
            "finished": finished,
            "tries": statistics.tries,
            "accepted": statistics.accepted,
            "documents": prepared.kept,
            "tokens": prepared.tokens,
            "dropped": prepared.dropped,
            "spent": vars(self._journal.spent),
        }
        write_json(out / SUMMARY, summary)
        publish(built, out, plan.source)
        shutil.rmtree(work, ignore_errors=True)
        return Outcome(out, statistics, self._journal.spent, prepared.kept, prepared.tokens, finished)
