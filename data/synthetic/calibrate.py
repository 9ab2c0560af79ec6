"""How far judges can be trusted: their verdicts on texts that people have labelled."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.data.synthetic.budget import Budget
from isthmus.data.synthetic.journal import Journal, calibration_journal, spent_in
from isthmus.data.synthetic.journey import Journey, Rules, judging
from isthmus.data.synthetic.plan import Plan
from isthmus.data.synthetic.protocols import Item, digest
from isthmus.data.synthetic.scheduler import Scheduler
from isthmus.data.synthetic.statistics import kappa
from isthmus.errors import UserError

PANEL = "panel"


@dataclass(frozen=True)
class Calibration:
    """Of a judge or the panel: [said keep and rightly so, said keep wrongly, said drop wrongly, said drop rightly]."""

    name: str
    cells: tuple[int, int, int, int]

    @property
    def precision(self) -> float:
        """What part of the texts that it keeps should be kept; 1 if it keeps none."""
        kept = self.cells[0] + self.cells[1]
        return self.cells[0] / kept if kept else 1.0

    @property
    def recall(self) -> float:
        """What part of the texts that should be kept it keeps; 1 if none should be."""
        good = self.cells[0] + self.cells[2]
        return self.cells[0] / good if good else 1.0

    @property
    def kappa(self) -> float:
        """Cohen's kappa between its verdicts and the labels."""
        return kappa(self.cells)


def calibrate(plan: Plan, labelled: Path) -> list[Calibration]:
    """Let the judges judge `labelled`, JSON lines of {"text", "keep"} and, where there is one, the "material".

    The answers are journaled in the output folder, so calibrating again costs nothing; other texts or judges have a
    journal of their own. The budget is that of the folder's synthesis.

    Raises:
        UserError: there is no judge, the file is not as it should be, or a server gives up.
    """
    if plan.rules.panel is None:
        raise UserError("there are none", where="data.judges.members", fix="name the judges to calibrate")
    rows = list(_rows(labelled))
    votes: dict[int, dict[str, bool]] = {}
    with closing(Journal(calibration_journal(plan.out, _judged(plan, rows)))) as journal:

        def journeys() -> Iterator[tuple[int, Journey]]:
            for number, (item, text, _) in enumerate(rows):
                if not journal.done(number, item.id):
                    yield number, judging(number, item, text, plan.rules)

        scheduler = Scheduler(
            plan.generators,
            journal,
            Budget(plan.data.budget, plan.prices, spent_in(plan.out, journal)),
            window=max(16, 4 * max(max(entry.batch, entry.parallel) for entry in plan.generators.values())),
            checkers=1,
            on_outcome=lambda number, outcome: None,
        )
        if not scheduler.run(journeys()):
            raise UserError("is spent", where="data.budget", fix="raise it and run the same command again")
        for number, outcome in enumerate(journal.finished(len(rows))):
            votes[number] = outcome["votes"]
    names = [judge.name for judge in plan.rules.panel.judges]
    found = [_cells(name, [votes[number][name] for number in range(len(rows))], rows) for name in names]
    if len(names) > 1:
        panel = [_panel(plan.rules, votes[number]) for number in range(len(rows))]
        found.append(_cells(PANEL, panel, rows))
    return found


def _judged(plan: Plan, rows: list[tuple[Item, str, bool]]) -> str:
    """Return a hash of what votes depend on."""
    assert plan.rules.panel is not None
    panel = plan.rules.panel
    judges = [[judge.name, plan.rules.fingerprints[judge.name]] for judge in panel.judges]
    prompts = [judge.prompt(item, text).messages for judge in panel.judges for item, text, _ in rows]
    return digest([judges, prompts, plan.rules.seed, plan.rules.sampling.max_tokens])


def _panel(rules: Rules, votes: dict[str, bool]) -> bool:
    assert rules.panel is not None
    return rules.panel.agrees([votes[judge.name] for judge in rules.panel.judges])


def _cells(name: str, votes: list[bool], rows: list[tuple[Item, str, bool]]) -> Calibration:
    cells = [0, 0, 0, 0]
    for vote, (_, _, keep) in zip(votes, rows, strict=True):
        cells[(0 if keep else 1) if vote else (2 if keep else 3)] += 1
    return Calibration(name, (cells[0], cells[1], cells[2], cells[3]))


def _rows(path: Path) -> Iterator[tuple[Item, str, bool]]:
    try:
        lines = path.read_text("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix="give a JSONL file") from None
    for number, line in enumerate(lines, start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            text, keep = row["text"], row["keep"]
            if not isinstance(text, str) or keep not in (True, False, 0, 1):
                raise TypeError
        except (ValueError, LookupError, TypeError):
            raise UserError(
                'is not an object with "text" and "keep"', where=f"{path}:{number}", fix="write one a line"
            ) from None
        task = {"text": row["material"]} if isinstance(row.get("material"), str) else {}
        yield Item(f"{number}", "labelled", task), text, bool(keep)
