"""report.html of a synthesis: one file that needs nothing else, the same bytes for the same journal."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from isthmus.data.extras import need
from isthmus.data.prepare.statistics import Statistics as Prepared
from isthmus.data.synthetic.journal import Spent
from isthmus.data.synthetic.plan import Plan
from isthmus.data.synthetic.statistics import KEPT, Statistics, kappa
from isthmus.files import write_atomically
from isthmus.pages import chart, page, table
from isthmus.units import format_count

_TABLES = "table + table { margin-top: 1.2em; }"
_MOST_TOPICS = 60
_DROPPED = {"decontamination.benchmark": "decontaminated", "dedup.exact": "no copies", "dedup.near": "no near-copies"}


def write_report(
    path: Path, plan: Plan, statistics: Statistics, spent: Spent, prepared: Prepared, finished: bool
) -> None:
    """Write the report of everything in the journal, and of what became of the accepted texts."""
    generator = plan.generators[""]
    rest = "" if finished else " The budget ended the run before its last item."
    labels = sorted(statistics.examples, key=lambda label: (label != KEPT, -statistics.reasons[label], label))
    body = [
        f"<p>Generator {html.escape(generator.name)} <span class='place'>{generator.fingerprint}</span>. "
        f"{statistics.tries:,} tries, {statistics.accepted:,} accepted, {format_count(prepared.tokens)} tokens in the "
        f"dataset.{rest} <span class='place'>Recipe and settings {plan.hash}</span></p>",
        "<h2>Funnel</h2>",
        _funnel(statistics, prepared),
        _reasons(statistics, prepared),
        "<h2>First and second try</h2>",
        _repairs(statistics),
        "<h2>Acceptance by topic</h2>",
        _topics(statistics),
        "<h2>Verifiers</h2>",
        _table(
            ("verifier", "checked", "passed", "share"),
            ((name, *counts, _share(counts[1], counts[0])) for name, counts in statistics.verifiers.items()),
        ),
        *_judges(statistics, plan),
        "<h2>Cost</h2>",
        _table(
            ("", "tokens"),
            (
                ("prompts", spent.prompt_tokens),
                ("answers", spent.completion_tokens),
                ("answers that were kept", statistics.kept_tokens),
            ),
        ),
        f"<p>{spent.requests:,} requests; cost {spent.cost:,.4f} by the generators' prices.</p>",
        "<h2>Examples</h2><p>Chosen by hash, so that they are the same in every run.</p>",
        *(_examples(label, statistics) for label in labels),
    ]
    title = f"{plan.data.recipe}: {prepared.kept:,} documents from {statistics.items:,} tasks"
    content = page(title, body, need("plotly.offline").get_plotlyjs())
    write_atomically(path, content.encode("utf-8", "replace"))


def _funnel(statistics: Statistics, prepared: Prepared) -> str:
    rows = statistics.funnel()
    left = statistics.accepted
    for rule, label in _DROPPED.items():
        if dropped := prepared.dropped.get(rule, [0, 0])[0]:
            left -= dropped
            rows.append((label, left))
    rows.append(("in the dataset", prepared.kept))
    trace = {
        "type": "funnel",
        "y": [label for label, _ in rows],
        "x": [count for _, count in rows],
        "textinfo": "value+percent initial",
    }
    return chart("funnel", [trace], {"margin": {"l": 160, "r": 20, "t": 20, "b": 30}}, 120 + 42 * len(rows))


def _reasons(statistics: Statistics, prepared: Prepared) -> str:
    rejected = [(label, count) for label, count in statistics.reasons.items() if not label.startswith("repair after")]
    dropped = [(rule, counts[0]) for rule, counts in sorted(prepared.dropped.items())]
    rows = [*sorted(rejected, key=lambda row: (-row[1], row[0])), *dropped]
    return _table(("rejected", "tries", "of all"), ((*row, _share(row[1], statistics.tries)) for row in rows))


def _repairs(statistics: Statistics) -> str:
    repaired = [
        (label.removeprefix("repair after "), count)
        for label, count in sorted(statistics.reasons.items())
        if label.startswith("repair after")
    ]
    rows = [
        ("right at first", statistics.verified_first, _share(statistics.verified_first, statistics.tries)),
        ("sent back for repair", statistics.repaired, _share(statistics.repaired, statistics.tries)),
        ("right after repair", statistics.repaired_verified, _share(statistics.repaired_verified, statistics.repaired)),
    ]
    told = _table(("", "tries", "share"), rows)
    return told + (_table(("sent back for", "tries"), repaired) if repaired else "")


def _topics(statistics: Statistics) -> str:
    topics = sorted(statistics.topics.items(), key=lambda entry: (-entry[1][0], entry[0]))
    shown = topics[:_MOST_TOPICS]
    names = [name for name, _ in shown]
    traces = [
        {"type": "bar", "name": "accepted", "x": names, "y": [kept for _, (_, kept) in shown]},
        {"type": "bar", "name": "rejected", "x": names, "y": [tries - kept for _, (tries, kept) in shown]},
    ]
    layout = {"barmode": "stack", "yaxis": {"title": "tries"}, "xaxis": {"type": "category"}}
    rest = f"<p>and {len(topics) - len(shown):,} topics more</p>" if len(topics) > len(shown) else ""
    rows = ((name, tries, kept, _share(kept, tries)) for name, (tries, kept) in shown)
    return chart("topics", traces, layout, 380) + _table(("topic", "tries", "accepted", "share"), rows) + rest


def _judges(statistics: Statistics, plan: Plan) -> list[str]:
    if not statistics.judges:
        return []
    rows = ((name, *counts, _share(counts[1], counts[0])) for name, counts in statistics.judges.items())
    parts = [
        f"<h2>Judges</h2><p>Rule: {plan.data.judges.rule.name}.</p>",
        _table(("judge", "judged", "2 of 2", "share"), rows),
    ]
    if statistics.votes:
        agreement = (
            (f"{one} and {two}", sum(cells), _share(cells[0] + cells[3], sum(cells)), f"{kappa(cells):.2f}", *cells)
            for (one, two), cells in statistics.votes.items()
        )
        parts.append(
            _table(
                ("judges", "both judged", "agree", "kappa", "both keep", "first only", "second only", "neither"),
                agreement,
            )
        )
    return parts


def _examples(label: str, statistics: Statistics) -> str:
    shown = "".join(
        f"<div class='place'>{html.escape(place)}</div><pre>{html.escape(text) or '(no text)'}</pre>"
        for _, place, text in statistics.examples[label]
    )
    return f"<details><summary>{html.escape(label)} ({len(statistics.examples[label])})</summary>{shown}</details>"


def _table(headings: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    return table(headings, ([f"{value:,}" if isinstance(value, int) else str(value) for value in row] for row in rows))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""
