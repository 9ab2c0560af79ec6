"""The HTML of `isthmus data mix`: one file that needs nothing else, the same bytes for the same mixture."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.data.accounting import Account
from isthmus.data.extras import need
from isthmus.files import write_atomically
from isthmus.units import format_count

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1000px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } td, th { padding: 2px 14px 2px 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
.warning { background: #fff3cd; padding: .4em .8em; margin: .4em 0; }
.place { color: #666; font-size: .85em; }
"""


def write_mix_report(path: Path, found: Account, fingerprint: str) -> None:
    """Draw tokens by source over the phases, epochs, and what repetition is worth."""
    served = sum(entry.tokens for entry in found.total.values())
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>isthmus data mix</title>",
        f"<style>{_STYLE}</style><script>{need('plotly.offline').get_plotlyjs()}</script></head><body>",
        f"<h1>What {format_count(served)} tokens are made of</h1>",
        f"<p>Worth {format_count(sum(found.effective.values()))} tokens of unique data (arXiv 2305.16264). "
        f"<span class='place'>Mixture {html.escape(fingerprint)}</span></p>",
        *(f"<p class='warning'>{html.escape(line)}</p>" for line in found.warnings),
        *(f"<p>{html.escape(line)}</p>" for line in found.notes),
        "<h2>By phase</h2>",
        _phases_chart(found),
        *(_phase_table(found, number) for number in range(len(found.phases))),
        "<h2>Epochs</h2>",
        _epochs_chart(found),
        _total_table(found),
        "</body></html>",
    ]
    write_atomically(path, "\n".join(parts).encode())


def _phases_chart(found: Account) -> str:
    names = [phase.name for phase in found.phases]
    bars = [
        {
            "type": "bar",
            "name": source,
            "orientation": "h",
            "y": names,
            "x": [phase.sources[source].tokens for phase in found.phases],
            "text": [f"{phase.sources[source].share:.1%}" for phase in found.phases],
        }
        for source in found.total
    ]
    layout = {"barmode": "stack", "xaxis": {"title": {"text": "tokens"}}, "yaxis": {"autorange": "reversed"}}
    return _chart("phases", bars, layout, 140 + 60 * len(names))


def _epochs_chart(found: Account) -> str:
    names = list(found.total)
    bars = [{"type": "bar", "x": names, "y": [found.total[name].epochs for name in names], "name": "epochs"}]
    line = {"type": "line", "y0": 4, "y1": 4, "x0": 0, "x1": 1, "xref": "paper", "line": {"dash": "dot"}}
    return _chart("epochs", bars, {"shapes": [line], "yaxis": {"title": {"text": "epochs (line: 4)"}}}, 320)


def _phase_table(found: Account, number: int) -> str:
    phase = found.phases[number]
    rows = []
    for name, served in phase.sources.items():
        exact = ", then ".join(f"{quotas.get(name, 0)}/{sum(quotas.values())}" for quotas in phase.quotas)
        rows.append(
            [name, f"{served.tokens:,}", f"{served.epochs:.3g}", f"{served.share:.2%}", f"{served.asked:.2%}", exact]
        )
    title = f"<h3>{html.escape(phase.name)}: from token {phase.start_tokens:,}, {phase.tokens:,} tokens</h3>"
    return title + _table(["source", "tokens", "epochs", "share", "asked", "q of Q"], rows)


def _total_table(found: Account) -> str:
    rows = [
        [
            name,
            f"{found.available[name]:,}",
            f"{served.tokens:,}",
            f"{served.epochs:.3g}",
            f"{found.unique[name]:,}",
            f"{found.effective[name]:,.0f}",
        ]
        for name, served in found.total.items()
    ]
    return _table(["source", "available", "served", "epochs", "unique", "worth (D')"], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(headings, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _chart(name: str, traces: list[dict[str, Any]], layout: dict[str, Any], height: int) -> str:
    layout = {"height": height, "margin": {"l": 110, "r": 20, "t": 20, "b": 50}, **layout}
    figure = need("plotly.graph_objects").Figure(traces, layout)
    drawn: str = need("plotly.io").to_html(figure, include_plotlyjs=False, full_html=False, div_id=name)
    return drawn
