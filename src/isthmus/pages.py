"""HTML reports: one self-contained file each, in one style; the same bytes for the same input."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLORS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8f5db7", "#e09f3e", "#5c6770", "#00a6a6", "#a3623a", "#b8b8b8")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #20262b; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { font-size: 1.2em; margin: 1.6em 0 .3em }
table { border-collapse: collapse; font-size: .9em } td, th { padding: .2em .8em .2em 0; text-align: right }
td, th { border-bottom: 1px solid #dde2e6 } td:first-child, th:first-child { text-align: left }
li { font-size: .9em } details { margin: .3em 0 } summary { cursor: pointer }
pre { white-space: pre-wrap; background: #f3f5f7; padding: .6em; margin: .3em 0 .8em; max-height: 14em; overflow: auto }
.note { background: #fff3d6; padding: .3em .8em; border-left: 4px solid #e09f3e; margin: .3em 0 }
.place { color: #5c6770; font-size: .85em; overflow-wrap: anywhere }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .6em; margin: 1em 0 }
.facts div { background: #f3f5f7; padding: .5em .8em; border-radius: 4px }
.facts b { display: block; font-size: 1.25em }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(540px, 1fr)); gap: 1em }
.chart, .charts > div { min-width: 0 }
"""


def page(title: str, body: Iterable[str], plotly: str) -> str:
    """Return the page.

    Args:
        body: HTML.
        plotly: the library, as plotly's `get_plotlyjs` returns it.
    """
    head = f"<head><meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    heading = f"<h1>{html.escape(title)}</h1>"
    parts = [f"{head}<script>{plotly}</script></head><body>", heading, *body, "</body></html>"]
    return "\n".join(["<!doctype html><html lang='en'>", *parts])


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain text."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(headings, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def notes(lines: Iterable[str]) -> str:
    """Return what the reader should not miss."""
    return "".join(f"<p class='note'>{html.escape(line)}</p>" for line in lines)


def chart(name: str, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], height: int = 400) -> str:
    """Return a chart of plotly's, drawn when the page is opened."""
    axis = {"automargin": True}
    base = {"margin": {"l": 60, "r": 20, "t": 45, "b": 55}, "colorway": COLORS, "plot_bgcolor": "#fbfcfd"}
    whole = {**base, "height": height, **layout}
    whole |= {name: axis | whole.get(name, {}) for name in ("xaxis", "yaxis")}
    # A closing tag inside a script's string would end the script.
    drawn = json.dumps([traces, whole]).replace("</", "<\\/")
    options = "{displayModeBar: false, responsive: true}"
    call = f'Plotly.newPlot("{name}", ...{drawn}, {options})'
    # Drawn when the page has its layout: a chart takes the width that it finds.
    script = f'<script>addEventListener("DOMContentLoaded", () => {call})</script>'
    return f'<div class="chart" id="{name}"></div>{script}'
