"""What became of every record, rule by rule."""

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from isthmus.data.prepare.statistics import Statistics
from isthmus.units import format_bytes, format_count

# The order in which rules are applied.
GROUPS = (
    "answer",
    "backstop",
    "url",
    "extraction",
    "text",
    "transcript",
    "language",
    "gopher_repetition",
    "gopher_quality",
    "c4",
    "fineweb",
    "speech",
    "decontamination",
    "dedup",
)


@dataclass(frozen=True)
class FunnelRow:
    """What a group of rules dropped, and what was left after it."""

    group: str
    dropped: int
    left: int
    rules: dict[str, int]


def funnel(statistics: Statistics) -> list[FunnelRow]:
    """Return the rows in order of application; groups that dropped nothing are left out."""
    left = statistics.records
    rows = []
    for group in GROUPS:
        rules = {rule: counts[0] for rule, counts in statistics.dropped.items() if rule.partition(".")[0] == group}
        if rules:
            dropped = sum(rules.values())
            left -= dropped
            ordered = dict(sorted(rules.items(), key=lambda entry: (-entry[1], entry[0])))
            rows.append(FunnelRow(group, dropped, left, ordered))
    return rows


def whole(sources: Mapping[str, Statistics]) -> Statistics:
    total = Statistics()
    for statistics in sources.values():
        total.add(statistics, samples=3)
    return total


def result_table(sources: Mapping[str, Statistics]) -> Table:
    """Return a row for every rule that dropped something, and for what remained, with a column a source."""
    total = whole(sources)
    table = Table(box=None, pad_edge=False)
    table.add_column("rule")
    for name in [*sources, *(["all"] if len(sources) > 1 else [])]:
        table.add_column(name, justify="right")
    table.add_column("of records", justify="right")
    columns = [*sources.values(), *([total] if len(sources) > 1 else [])]

    def row(label: str, values: list[int], *, bytes: bool = False) -> None:
        show = format_bytes if bytes else format_count
        share = f"{values[-1] / total.records:.1%}" if total.records and not bytes else ""
        table.add_row(label, *(show(value) if value else "" for value in values), share)

    row("records", [statistics.records for statistics in columns])
    for step in funnel(total):
        for rule in step.rules:
            row(f"  {rule}", [statistics.dropped.get(rule, [0, 0])[0] for statistics in columns])
    row("kept", [statistics.kept for statistics in columns])
    row("  text", [statistics.kept_bytes for statistics in columns], bytes=True)
    row("rejected", [statistics.rejected for statistics in columns])
    tokens = [statistics.tokens for statistics in columns]
    table.add_row("tokens", *(format_count(value) if value else "" for value in tokens), "")
    return table
