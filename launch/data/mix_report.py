"""The HTML of `isthmus data mix`: one file that needs nothing else, the same bytes for the same mixture."""

import html
from pathlib import Path

from isthmus.data.accounting import Account
from isthmus.data.extras import need
from isthmus.files import write_atomically
from isthmus.pages import chart, notes, page, table
from isthmus.units import format_count


def write_mix_report(path: Path, found: Account, fingerprint: str) -> None:
    """Draw tokens by source over the phases, epochs, and what repetition is worth."""
    served = sum(entry.tokens for entry in found.total.values())
    body = [
        f"<p>Worth {format_count(sum(found.effective.values()))} tokens of unique data (arXiv 2305.16264). "
        f"<span class='place'>Mixture {html.escape(fingerprint)}</span></p>",
        notes(found.warnings),
        *(f"<p>{html.escape(line)}</p>" for line in found.notes),
        "<h2>By phase</h2>",
        _phases_chart(found),
        *(_phase_table(found, number) for number in range(len(found.phases))),
        "<h2>Epochs</h2>",
        _epochs_chart(found),
        _total_table(found),
    ]
    title = f"What {format_count(served)} tokens are made of"
    write_atomically(path, page(title, body, need("plotly.offline").get_plotlyjs()).encode())


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
    return chart("phases", bars, layout, 140 + 60 * len(names))


def _epochs_chart(found: Account) -> str:
    names = list(found.total)
    bars = [{"type": "bar", "x": names, "y": [found.total[name].epochs for name in names], "name": "epochs"}]
    line = {"type": "line", "y0": 4, "y1": 4, "x0": 0, "x1": 1, "xref": "paper", "line": {"dash": "dot"}}
    return chart("epochs", bars, {"shapes": [line], "yaxis": {"title": {"text": "epochs (line: 4)"}}}, 320)


def _phase_table(found: Account, number: int) -> str:
    phase = found.phases[number]
    rows = []
    for name, served in phase.sources.items():
        exact = ", then ".join(f"{quotas.get(name, 0)}/{sum(quotas.values())}" for quotas in phase.quotas)
        rows.append(
            [name, f"{served.tokens:,}", f"{served.epochs:.3g}", f"{served.share:.2%}", f"{served.asked:.2%}", exact]
        )
    title = f"<h3>{html.escape(phase.name)}: from token {phase.start_tokens:,}, {phase.tokens:,} tokens</h3>"
    return title + table(["source", "tokens", "epochs", "share", "asked", "q of Q"], rows)


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
    return table(["source", "available", "served", "epochs", "unique", "worth (D')"], rows)
