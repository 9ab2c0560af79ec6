"""report.html: one file that needs nothing else, the same bytes for the same input."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isthmus.data.extras import need
from isthmus.data.prepare.statistics import KEPT, Statistics
from isthmus.data.prepare.table import FunnelRow, funnel, whole
from isthmus.files import write_atomically
from isthmus.units import format_bytes, format_count

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { padding: 2px 12px 2px 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
details { margin: .3em 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; background: #f6f6f6; padding: .6em; margin: .3em 0 .8em; max-height: 14em; }
pre { overflow: auto; }
.place { color: #666; font-size: .85em; overflow-wrap: anywhere; }
"""
_MEASURES = {
    "characters": ("Length", "characters (logarithmic)"),
    "language_score": ("Language score", "score"),
    "mean_word_length": ("Mean word length", "characters"),
    "line_punctuation": ("Lines that end a sentence", "fraction"),
}


def write_report(path: Path, sources: Mapping[str, Statistics], config_hash: str) -> None:
    """Write the report of all sources together, and of each."""
    total = whole(sources)
    samples = {rule for statistics in sources.values() for rule in statistics.samples}
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>isthmus data prepare</title>",
        f"<style>{STYLE}</style><script>{need('plotly.offline').get_plotlyjs()}</script></head><body>",
        f"<h1>What became of {format_count(total.records)} records</h1>",
        f"<p>{format_count(total.kept)} documents were kept: {format_bytes(total.kept_bytes)} of text, "
        f"{format_count(total.tokens)} tokens. {format_count(total.rejected)} could not be read. "
        f"<span class='place'>Configuration and input {config_hash[:16]}</span></p>",
        _sources(sources),
        "<h2>Funnel</h2>",
        _funnel_chart(total),
        _rules(total),
        "<h2>Distributions</h2>",
        *(_histogram(name, total) for name in _MEASURES if total.histograms.get(name)),
        _duplicates(sources),
        "<h2>Examples</h2><p>Chosen by hash, so that they are the same in every run.</p>",
        *(_examples(rule, sources) for rule in sorted(samples, key=lambda rule: (rule != KEPT, rule))),
        "</body></html>",
    ]
    write_atomically(path, "\n".join(parts).encode("utf-8", "replace"))


def _sources(sources: Mapping[str, Statistics]) -> str:
    rows = [
        "<tr><th>source</th><th>input</th><th>records</th><th>rejected</th><th>dropped</th><th>kept</th><th>text</th>"
        "<th>tokens</th></tr>"
    ]
    for name, statistics in sources.items():
        dropped = sum(documents for documents, _ in statistics.dropped.values())
        cells = [
            html.escape(name),
            format_bytes(statistics.input_bytes),
            *(f"{value:,}" for value in (statistics.records, statistics.rejected, dropped, statistics.kept)),
            format_bytes(statistics.kept_bytes),
            f"{statistics.tokens:,}",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table>{''.join(rows)}</table>"


def _funnel_chart(total: Statistics) -> str:
    steps: list[FunnelRow] = funnel(total)
    labels = ["records", *(f"after {step.group}" for step in steps)]
    values = [total.records, *(step.left for step in steps)]
    graph = need("plotly.graph_objects")
    figure = graph.Figure(
        graph.Funnel(y=labels, x=values, textinfo="value+percent initial", marker={"color": "#3b6ea5"})
    )
    return _figure(figure, "funnel", height=120 + 42 * len(labels))


def _rules(total: Statistics) -> str:
    rows = ["<tr><th>rule</th><th>documents</th><th>of records</th><th>text</th></tr>"]
    for step in funnel(total):
        for rule, documents in step.rules.items():
            share = documents / total.records if total.records else 0.0
            size = format_bytes(total.dropped[rule][1]) if total.dropped[rule][1] else ""
            rows.append(
                f"<tr><td>{html.escape(rule)}</td><td>{documents:,}</td><td>{share:.2%}</td><td>{size}</td></tr>"
            )
    return f"<table>{''.join(rows)}</table>"


def _histogram(name: str, total: Statistics) -> str:
    title, unit = _MEASURES[name]
    found = {int(label): counts for label, counts in total.histograms[name].items()}
    bins = [(number, found.get(number, [0, 0])) for number in range(min(found), max(found) + 1)]
    labels = [_label(name, number) for number, _ in bins]
    graph = need("plotly.graph_objects")
    figure = graph.Figure(
        [
            graph.Bar(name="kept by the rules", x=labels, y=[counts[0] for _, counts in bins], marker_color="#3b6ea5"),
            graph.Bar(name="dropped", x=labels, y=[counts[1] for _, counts in bins], marker_color="#d98c4a"),
        ]
    )
    figure.update_layout(
        barmode="stack", title=title, xaxis={"title": unit, "type": "category"}, yaxis_title="documents"
    )
    return _figure(figure, name, height=320)


def _label(name: str, number: int) -> str:
    if name == "characters":
        return format_count(2 ** ((number - 1) / 4)) if number else "0"
    return f"{number / 2:g}" if name == "mean_word_length" else f"{number / 20:.2f}"


def _duplicates(sources: Mapping[str, Statistics]) -> str:
    rows = ["<tr><th>source</th><th>equal to another</th><th>nearly equal</th><th>kept</th></tr>"]
    for name, statistics in sources.items():
        counts = [statistics.dropped.get(rule, [0, 0])[0] for rule in ("dedup.exact", "dedup.near")]
        cells = "".join(f"<td>{value:,}</td>" for value in (*counts, statistics.kept))
        rows.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f"<h2>Duplicates</h2><table>{''.join(rows)}</table>"


def _examples(rule: str, sources: Mapping[str, Statistics]) -> str:
    shown = []
    for name, statistics in sources.items():
        for _, file, offset, url, text in statistics.samples.get(rule, []):
            place = html.escape(f"{name}: {file}:{offset} {url}".strip())
            body = f"<pre>{html.escape(text)}</pre>" if text else "<pre>(no text)</pre>"
            shown.append(f"<div class='place'>{place}</div>{body}")
    return f"<details><summary>{html.escape(rule)} ({len(shown)})</summary>{''.join(shown)}</details>"


def _figure(figure: Any, name: str, height: int) -> str:
    figure.update_layout(height=height, margin={"l": 160, "r": 20, "t": 50, "b": 50}, template="plotly_white")
    return str(figure.to_html(full_html=False, include_plotlyjs=False, div_id=name, config={"displaylogo": False}))
