"""report.html: one file that needs nothing else, the same bytes for the same input."""

import html
from collections.abc import Mapping
from pathlib import Path

from isthmus.data.extras import need
from isthmus.data.prepare.statistics import KEPT, Statistics
from isthmus.data.prepare.table import FunnelRow, funnel, whole
from isthmus.files import write_atomically
from isthmus.pages import chart, page, table
from isthmus.units import format_bytes, format_count

_MEASURES = {
    "characters": ("Length", "characters (logarithmic)"),
    "language_score": ("Language score", "score"),
    "mean_word_length": ("Mean word length", "characters"),
    "line_punctuation": ("Lines that end a sentence", "fraction"),
}


def write_report(path: Path, sources: Mapping[str, Statistics], config_hash: str, packed: Mapping[int, float]) -> None:
    """Write the report of all sources together, and of each; `packed` says how full windows of a length are."""
    total = whole(sources)
    samples = {rule for statistics in sources.values() for rule in statistics.samples}
    body = [
        f"<p>{format_count(total.kept)} documents were kept: {format_bytes(total.kept_bytes)} of text, "
        f"{format_count(total.tokens)} tokens. {format_count(total.rejected)} could not be read. "
        f"<span class='place'>Configuration and input {config_hash[:16]}</span></p>",
        *(
            f"<p>Packed of whole documents, samples of {length} tokens are {fill:.2%} full.</p>"
            for length, fill in packed.items()
        ),
        _sources(sources),
        "<h2>Funnel</h2>",
        _funnel_chart(total),
        _rules(total),
        "<h2>Distributions</h2>",
        *(_histogram(name, total) for name in _MEASURES if total.histograms.get(name)),
        _duplicates(sources),
        "<h2>Examples</h2><p>Chosen by hash, so that they are the same in every run.</p>",
        *(_examples(rule, sources) for rule in sorted(samples, key=lambda rule: (rule != KEPT, rule))),
    ]
    title = f"What became of {format_count(total.records)} records"
    content = page(title, body, need("plotly.offline").get_plotlyjs())
    write_atomically(path, content.encode("utf-8", "replace"))


def _sources(sources: Mapping[str, Statistics]) -> str:
    rows = []
    for name, statistics in sources.items():
        dropped = sum(documents for documents, _ in statistics.dropped.values())
        counts = (statistics.records, statistics.rejected, dropped, statistics.kept)
        cells = [name, format_bytes(statistics.input_bytes), *(f"{value:,}" for value in counts)]
        rows.append([*cells, format_bytes(statistics.kept_bytes), f"{statistics.tokens:,}"])
    return table(["source", "input", "records", "rejected", "dropped", "kept", "text", "tokens"], rows)


def _funnel_chart(total: Statistics) -> str:
    steps: list[FunnelRow] = funnel(total)
    labels = ["records", *(f"after {step.group}" for step in steps)]
    values = [total.records, *(step.left for step in steps)]
    trace = {"type": "funnel", "y": labels, "x": values, "textinfo": "value+percent initial"}
    return chart("funnel", [trace], {}, height=120 + 42 * len(labels))


def _rules(total: Statistics) -> str:
    rows = []
    for step in funnel(total):
        for rule, documents in step.rules.items():
            share = documents / total.records if total.records else 0.0
            size = format_bytes(total.dropped[rule][1]) if total.dropped[rule][1] else ""
            rows.append([rule, f"{documents:,}", f"{share:.2%}", size])
    return table(["rule", "documents", "of records", "text"], rows)


def _histogram(name: str, total: Statistics) -> str:
    title, unit = _MEASURES[name]
    found = {int(label): counts for label, counts in total.histograms[name].items()}
    bins = [(number, found.get(number, [0, 0])) for number in range(min(found), max(found) + 1)]
    labels = [_label(name, number) for number, _ in bins]
    bars = [
        {"type": "bar", "name": label, "x": labels, "y": [counts[column] for _, counts in bins]}
        for column, label in enumerate(("kept by the rules", "dropped"))
    ]
    axes = {"xaxis": {"title": {"text": unit}, "type": "category"}, "yaxis": {"title": {"text": "documents"}}}
    return chart(name, bars, {"barmode": "stack", "title": {"text": title}, **axes}, height=320)


def _label(name: str, number: int) -> str:
    if name == "characters":
        return format_count(2 ** ((number - 1) / 4)) if number else "0"
    return f"{number / 2:g}" if name == "mean_word_length" else f"{number / 20:.2f}"


def _duplicates(sources: Mapping[str, Statistics]) -> str:
    rows = []
    for name, statistics in sources.items():
        counts = [statistics.dropped.get(rule, [0, 0])[0] for rule in ("dedup.exact", "dedup.near")]
        rows.append([name, *(f"{value:,}" for value in (*counts, statistics.kept))])
    return "<h2>Duplicates</h2>" + table(["source", "equal to another", "nearly equal", "kept"], rows)


def _examples(rule: str, sources: Mapping[str, Statistics]) -> str:
    shown = []
    for name, statistics in sources.items():
        for _, file, offset, url, text in statistics.samples.get(rule, []):
            place = html.escape(f"{name}: {file}:{offset} {url}".strip())
            body = f"<pre>{html.escape(text)}</pre>" if text else "<pre>(no text)</pre>"
            shown.append(f"<div class='place'>{place}</div>{body}")
    return f"<details><summary>{html.escape(rule)} ({len(shown)})</summary>{''.join(shown)}</details>"
