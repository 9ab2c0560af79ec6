"""report.html of a synthesis: one file that needs nothing else, the same bytes for the same journal."""

import html
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isthmus.data.extras import need
from isthmus.data.prepare.report import STYLE
from isthmus.data.prepare.statistics import Statistics as Prepared
from isthmus.data.synthetic.journal import Spent
from isthmus.data.synthetic.plan import Plan
from isthmus.data.synthetic.statistics import KEPT, Statistics, kappa
from isthmus.files import write_atomically
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
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>isthmus data synthesize</title>",
        f"<style>{STYLE}{_TABLES}</style><script>{need('plotly.offline').get_plotlyjs()}</script></head><body>",
        f"<h1>{html.escape(plan.data.recipe)}: {prepared.kept:,} documents from {statistics.items:,} tasks</h1>",
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
        "</body></html>",
    ]
    write_atomically(path, "\n".join(parts).encode("utf-8", "replace"))


def _funnel(statistics: Statistics, prepared: Prepared) -> str:
    rows = statistics.funnel()
    left = statistics.accepted
    for rule, label in _DROPPED.items():
        if dropped := prepared.dropped.get(rule, [0, 0])[0]:
            left -= dropped
            rows.append((label, left))
    rows.append(("in the dataset", prepared.kept))
    graph = need("plotly.graph_objects")
    figure = graph.Figure(
        graph.Funnel(
            y=[label for label, _ in rows],
            x=[count for _, count in rows],
            textinfo="value+percent initial",
            marker={"color": "#3b6ea5"},
        )
    )
    return _figure(figure, "funnel", 120 + 42 * len(rows))


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
    table = _table(("", "tries", "share"), rows)
    return table + (_table(("sent back for", "tries"), repaired) if repaired else "")


def _topics(statistics: Statistics) -> str:
    topics = sorted(statistics.topics.items(), key=lambda entry: (-entry[1][0], entry[0]))
    shown = topics[:_MOST_TOPICS]
    graph = need("plotly.graph_objects")
    names = [name for name, _ in shown]
    figure = graph.Figure(
        [
            graph.Bar(name="accepted", x=names, y=[counts[1] for _, counts in shown], marker_color="#3b6ea5"),
            graph.Bar(name="rejected", x=names, y=[tries - kept for _, (tries, kept) in shown], marker_color="#d98c4a"),
        ]
    )
    figure.update_layout(barmode="stack", yaxis_title="tries", xaxis={"type": "category"})
    rest = f"<p>and {len(topics) - len(shown):,} topics more</p>" if len(topics) > len(shown) else ""
    rows = ((name, tries, kept, _share(kept, tries)) for name, (tries, kept) in shown)
    return _figure(figure, "topics", 380) + _table(("topic", "tries", "accepted", "share"), rows) + rest


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


def _table(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    lines = [
        "".join(
            f"<td>{value:,}</td>" if isinstance(value, int) else f"<td>{html.escape(str(value))}</td>" for value in row
        )
        for row in rows
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""


def _figure(figure: Any, name: str, height: int) -> str:
    figure.update_layout(height=height, margin={"l": 160, "r": 20, "t": 50, "b": 50}, template="plotly_white")
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config={"displaylogo": False}))
