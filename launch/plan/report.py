"""report.html of a plan: one file with plotly in it, that opens without a network."""

import html
from dataclasses import fields
from typing import Any

from plotly.offline import get_plotlyjs

from isthmus.pages import COLORS, chart, notes, page, table
from isthmus.train.planner import curves
from isthmus.train.planner.candidates import Candidate
from isthmus.train.planner.memory import Memory
from isthmus.train.planner.plan import Plan, checkpoint_steps
from isthmus.units import format_count, format_duration


def report_html(plan: Plan) -> str:
    """Return the page."""
    chosen = plan.chosen
    title = f"{format_count(chosen.shape.params)} parameters on {format_count(chosen.tokens)} tokens"
    charts = {
        "size": _size_chart(plan),
        "frontier": _frontier_chart(plan),
        "ratio": _ratio_chart(plan),
        "memory": _memory_chart(plan),
        "step": _step_chart(plan),
        "links": _links_chart(plan),
        "goodput": _goodput_chart(plan),
        "cost": _cost_chart(plan),
    }
    body = [
        notes(plan.warnings),
        "<div class='facts'>",
        *(f"<div>{html.escape(name)}<b>{html.escape(value)}</b></div>" for name, value in _facts(plan)),
        "</div><div class='charts'>",
        *(f"<div>{chart(name, drawn['data'], drawn['layout'])}</div>" for name, drawn in charts.items()),
        "</div><h2>Plans near it</h2>",
        _table([chosen, *plan.alternatives]),
        "<h2>What it rests on</h2><ul>",
        *(f"<li>{html.escape(line)}</li>" for line in plan.assumptions),
        "</ul>",
    ]
    return page(title, body, get_plotlyjs())


def _facts(plan: Plan) -> list[tuple[str, str]]:
    chosen, prediction = plan.chosen, plan.chosen.prediction
    loss = f"{chosen.loss:.3f}"
    if plan.loss_interval:
        loss += f" ({plan.loss_interval[0]:.3f} to {plan.loss_interval[1]:.3f})"
    return [
        ("loss (95%)", loss),
        ("tokens per parameter", f"{chosen.tokens / chosen.shape.params:.3g}"),
        ("training FLOPs", f"{chosen.training_flops:.3g}"),
        ("days", f"{chosen.days:.3g}"),
        ("cost", f"${chosen.cost:,.0f}"),
        ("energy", f"{chosen.megawatt_hours:,.3g} MWh"),
        ("accelerators, spares included", f"{chosen.accelerators}"),
        ("step", f"{prediction.step_seconds:.3g} s"),
        ("MFU", f"{prediction.mfu:.1%}"),
        ("sync", chosen.sync.describe()),
        ("utilisation of the links' wait", f"{prediction.utilisation:.1%}"),
        ("checkpoint every", f"{checkpoint_steps(chosen)} steps"),
    ]


def _layout(title: str, x: str, y: str, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "title": {"text": title, "font": {"size": 15}},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "legend": {"font": {"size": 11}},
    }
    for axis in ("xaxis", "yaxis"):
        base[axis] |= more.pop(axis, {})
    return base | more


def _line(name: str, curve: curves.Curve, color: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": curve.x,
        "y": curve.y,
        "line": {"color": color},
    } | more


def _size_chart(plan: Plan) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for color, (name, curve) in zip(COLORS, curves.losses_over_size(plan).items(), strict=False):
        if curve.low:
            band = {"x": [*curve.x, *reversed(curve.x)], "y": [*curve.high, *reversed(curve.low)]}
            fill = {"fill": "toself", "fillcolor": "rgba(27,108,168,.15)", "line": {"width": 0}, "hoverinfo": "skip"}
            data.append({"type": "scatter", "mode": "lines", "name": f"{name}, 95%"} | band | fill)
        data.append(_line(name, curve, color))
    chosen = plan.chosen
    point = {"x": [chosen.shape.params], "y": [chosen.loss], "marker": {"size": 12, "color": "#20262b"}}
    data.append({"type": "scatter", "mode": "markers", "name": "the plan"} | point)
    losses = [loss for curve in curves.losses_over_size(plan).values() for loss in curve.y]
    top = min(max(losses), min(losses) * 1.25)
    title = f"Loss over size at {chosen.training_flops:.2g} FLOPs"
    return {
        "data": data,
        "layout": _layout(
            title, "parameters", "loss", xaxis={"type": "log"}, yaxis={"range": [min(losses) * 0.98, top]}
        ),
    }


def _frontier_chart(plan: Plan) -> dict[str, Any]:
    found = curves.frontiers(plan).items()
    data = [_line(name, curve, color) for color, (name, curve) in zip(COLORS, found, strict=False)]
    law = plan.question.law
    reach = {"x": [law.largest_flops], "y": [law.loss(*law.optimum(law.largest_flops))]}
    data.append({"type": "scatter", "mode": "markers", "name": "the law's dearest run", "marker": {"size": 9}} | reach)
    point = {"x": [plan.chosen.training_flops], "y": [plan.chosen.loss]}
    data.append(
        {"type": "scatter", "mode": "markers", "name": "the plan", "marker": {"size": 12, "color": "#20262b"}} | point
    )
    return {"data": data, "layout": _layout("Best loss over compute", "FLOPs", "loss", xaxis={"type": "log"})}


def _ratio_chart(plan: Plan) -> dict[str, Any]:
    found = curves.ratios(plan)
    chosen = plan.chosen.tokens / plan.chosen.shape.params
    bars = {
        "x": [*found, "the plan"],
        "y": [*found.values(), chosen],
        "text": [f"{v:.3g}" for v in [*found.values(), chosen]],
    }
    colors = {"marker": {"color": [COLORS[0]] * len(found) + ["#20262b"]}}
    return {
        "data": [{"type": "bar", "textposition": "outside"} | bars | colors],
        "layout": _layout("Tokens per parameter, by law", "", "tokens per parameter", showlegend=False),
    }


def _memory_chart(plan: Plan) -> dict[str, Any]:
    stages = curves.stage_memories(plan)
    names = [f"stage {place + 1}" for place in range(len(stages))] if len(stages) > 1 else ["every rank"]
    data: list[dict[str, Any]] = [
        {"type": "bar", "name": entry.name, "x": names, "y": [getattr(stage, entry.name) / 1e9 for stage in stages]}
        for entry in fields(Memory)
        if any(getattr(stage, entry.name) for stage in stages)
    ]
    limit = plan.chosen.prediction.memory_limit_bytes / 1e9
    line = {"type": "line", "y0": limit, "y1": limit, "x0": 0, "x1": 1, "xref": "paper", "line": {"dash": "dash"}}
    label = {"y": limit, "x": 1, "xref": "paper", "yanchor": "bottom", "text": "usable", "showarrow": False}
    more = {"barmode": "stack", "shapes": [line], "annotations": [label]}
    return {"data": data, "layout": _layout("Memory of a rank, by pipeline stage", "", "GB", **more)}


def _step_chart(plan: Plan) -> dict[str, Any]:
    names = {
        "compute": "compute",
        "host": "waiting for the host",
        "tensor": "tensor, context, expert (exposed)",
        "bubble": "pipeline bubble",
        "pipeline": "pipeline sends",
        "data": "gradients in the site (exposed)",
        "optimizer": "optimizer",
        "straggler": "slowest accelerator",
        "cross_site": "between sites (exposed)",
    }
    parts = plan.chosen.prediction.parts
    data = [
        {"type": "bar", "orientation": "h", "name": label, "y": ["a step"], "x": [parts.get(name, 0.0)]}
        for name, label in names.items()
        if parts.get(name, 0.0) > 0
    ]
    return {"data": data, "layout": _layout("Where a step's time goes", "seconds", "", barmode="stack")}


def _links_chart(plan: Plan) -> dict[str, Any]:
    found = curves.utilisations(plan).items()
    data = [_line(name, curve, color) for color, (name, curve) in zip(COLORS, found, strict=False)]
    two = "" if len(plan.chosen.cluster.sites) > 1 else " (if there were two such sites)"
    axes = {"xaxis": {"type": "log"}, "yaxis": {"tickformat": ".0%", "range": [0, 1.03]}}
    return {"data": data, "layout": _layout(f"Utilisation over link speed{two}", "Gbit/s of every link", "", **axes)}


def _goodput_chart(plan: Plan) -> dict[str, Any]:
    kept = plan.chosen.reliability
    point = {"x": [kept.interval_seconds / 60], "y": [kept.goodput], "marker": {"size": 12, "color": "#20262b"}}
    name = f"the plan: {format_duration(kept.interval_seconds)}"
    return {
        "data": [
            _line("goodput", curves.goodputs(kept), COLORS[0]),
            {"type": "scatter", "mode": "markers", "name": name} | point,
        ],
        "layout": _layout(
            f"Goodput over the checkpoint interval ({kept.failures_per_day:.3g} failures a day)",
            "minutes of work between checkpoints",
            "",
            xaxis={"type": "log"},
            yaxis={"tickformat": ".1%"},
        ),
    }


def _cost_chart(plan: Plan) -> dict[str, Any]:
    found = [plan.chosen, *plan.alternatives[:5]]
    labels = [f"{place + 1}: {_sites(entry)}<br>{entry.sync.describe()}" for place, entry in enumerate(found)]
    stacks = {
        "accelerators": [entry.compute_cost for entry in found],
        "links": [entry.link_cost for entry in found],
        "copying data": [entry.data_cost for entry in found],
    }
    data: list[dict[str, Any]] = [
        {"type": "bar", "name": name, "x": labels, "y": values} for name, values in stacks.items() if any(values)
    ]
    energy = {"x": labels, "y": [entry.megawatt_hours for entry in found], "yaxis": "y2", "marker": {"size": 9}}
    data.append({"type": "scatter", "mode": "markers", "name": "energy (MWh, right)"} | energy)
    right = {"overlaying": "y", "side": "right", "rangemode": "tozero", "showgrid": False, "automargin": True}
    more = {
        "barmode": "stack",
        "yaxis2": right,
        "xaxis": {"tickfont": {"size": 9}},
        "legend": {"orientation": "h", "y": -0.5},
        "margin": {"l": 60, "r": 60, "t": 45, "b": 55},
    }
    return {"data": data, "layout": _layout("Cost and energy, best plan first", "", "US dollars", **more)}


def _sites(candidate: Candidate) -> str:
    names = candidate.site_names
    return ", ".join(names) if len(names) < 4 else f"{len(names)} sites"


def _table(found: list[Candidate]) -> str:
    heads = ("sites", "sync", "parameters", "tokens", "loss", "days", "cost", "MFU", "utilisation", "goodput")
    rows = [
        (
            _sites(entry),
            entry.sync.describe(),
            format_count(entry.shape.params),
            format_count(entry.tokens),
            f"{entry.loss:.4f}",
            f"{entry.days:.3g}",
            f"${entry.cost:,.0f}",
            f"{entry.prediction.mfu:.1%}",
            f"{entry.prediction.utilisation:.1%}",
            f"{entry.reliability.goodput:.1%}",
        )
        for entry in found
    ]
    return table(heads, rows)
