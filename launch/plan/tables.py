"""What `isthmus plan` prints."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from isthmus.train.planner.candidates import Candidate
from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.plan import Plan, checkpoint_steps
from isthmus.train.planner.predict import Prediction
from isthmus.train.planner.shape import Shape
from isthmus.units import format_bytes, format_count, format_duration

_SHOWN = 10


def print_plan(console: Console, plan: Plan) -> None:
    """Print the chosen plan, the ones near it, the laws and the assumptions."""
    chosen = plan.chosen
    console.print(_chosen_table(plan))
    console.print(_alternatives_table([chosen, *plan.alternatives[: _SHOWN - 1]], plan.front))
    console.print(_sizes_table(plan))
    console.print(_laws_table(plan))
    for warning in plan.warnings:
        console.print(f"[yellow]note:[/yellow] {warning}", highlight=False)
    console.print("assumptions:", highlight=False)
    for assumption in plan.assumptions:
        console.print(f"  - {assumption}", highlight=False)


def _chosen_table(plan: Plan) -> Table:
    chosen, layout, shape = plan.chosen, plan.chosen.layout, plan.chosen.shape
    prediction, kept = chosen.prediction, chosen.reliability
    table = Table("the plan", "", show_header=True)
    interval = ""
    if plan.params_interval is not None:
        low, high = plan.params_interval
        interval = f" (95% of the law's refits: {format_count(low)} to {format_count(high)})"
    table.add_row(
        "model",
        f"{format_count(shape.params)} parameters{interval}: {shape.layers} layers x {shape.hidden}, "
        f"{shape.heads} heads of {shape.head_width}, {shape.groups} key/value groups, inner width {shape.ffn}",
    )
    table.add_row(
        "tokens",
        f"{format_count(chosen.tokens)}, {chosen.tokens / shape.params:.3g} per parameter, "
        f"{chosen.training_flops:.3g} FLOPs",
    )
    loss = f"{chosen.loss:.4f}"
    if plan.loss_interval is not None:
        loss += f" (95%: {plan.loss_interval[0]:.3f} to {plan.loss_interval[1]:.3f})"
    table.add_row("loss", loss + (f", {chosen.penalty:.2%} of it for local sync" if chosen.penalty else ""))
    for name, (share, epochs) in plan.mixture.items():
        table.add_row(f"data: {name}", f"{share:.1%} of the tokens, {epochs:.2f} passes")
    where = ", ".join(chosen.site_names)
    table.add_row("sites", f"{where}: {layout.ranks} accelerators in each, sync {chosen.sync.describe()}")
    table.add_row("layout", _layout_line(layout, prediction))
    table.add_row(
        "step",
        f"{prediction.step_seconds:.3g} s, {format_count(prediction.tokens_per_second)} tokens/s, "
        f"{prediction.tflops_per_accelerator:.3g} TFLOP/s each, MFU {prediction.mfu:.1%}, "
        f"link utilisation {prediction.utilisation:.1%}",
    )
    table.add_row("memory", _memory_line(prediction))
    batch = format_count(layout.global_batch * layout.sequence_length)
    others = {"Step Law": chosen.recipe, **plan.recipe_alternatives}
    table.add_row(
        "recipe",
        f"learning rate {chosen.recipe.learning_rate:.3g}, batch {batch} tokens; rules: "
        + ", ".join(f"{name} {r.learning_rate:.3g} and {format_count(r.batch_tokens)}" for name, r in others.items()),
    )
    table.add_row(
        "failures",
        f"{kept.failures_per_day:.3g} a day, checkpoint every {checkpoint_steps(chosen)} steps "
        f"({format_duration(kept.interval_seconds)}), goodput {kept.goodput:.1%}, {kept.spares} spares",
    )
    table.add_row("done in", f"{chosen.days:.3g} days, {chosen.steps} steps")
    table.add_row(
        "cost",
        f"${chosen.cost:,.0f}: accelerators ${chosen.compute_cost:,.0f}, links ${chosen.link_cost:,.0f}, "
        f"copying data ${chosen.data_cost:,.0f} ({chosen.data_hours:.3g} h); {chosen.megawatt_hours:,.3g} MWh",
    )
    return table


def _layout_line(layout: Layout, prediction: Prediction) -> str:
    chunks = f" x {layout.virtual_pipeline} chunks" if layout.virtual_pipeline > 1 else ""
    return (
        f"tensor {layout.tensor}{' + sequence' if layout.sequence else ''}, pipeline {layout.pipeline}{chunks}, "
        f"context {layout.context}, data {layout.data}; {prediction.microbatches} x {layout.micro_batch} samples each, "
        f"batch {layout.global_batch} x {layout.sequence_length}, {layout.precision}, "
        f"recompute {layout.recompute}, bubble {prediction.bubble:.1%}"
    )


def _memory_line(prediction: Prediction) -> str:
    memory = prediction.memory
    parts = {
        name: getattr(memory, name)
        for name in ("parameters", "gradients", "optimizer", "activations", "logits", "fragments", "staging")
    }
    shown = ", ".join(f"{name} {format_bytes(value)}" for name, value in parts.items() if value)
    return f"{format_bytes(memory.total)} of {format_bytes(prediction.memory_limit_bytes)}: {shown}"


def _alternatives_table(found: list[Candidate], front: object) -> Table:
    columns = ("", "sites", "sync", "parameters", "tokens", "loss", "days", "cost", "MFU", "utilisation")
    table = Table(*columns, title="plans near it")
    for place, entry in enumerate(found):
        names = entry.site_names
        table.add_row(
            ">" if place == 0 else "*" if isinstance(front, list) and entry in front else "",
            ", ".join(names) if len(names) < 4 else f"{len(names)} sites",
            entry.sync.describe(),
            format_count(entry.shape.params),
            format_count(entry.tokens),
            f"{entry.loss:.4f}",
            f"{entry.days:.3g}",
            f"${entry.cost:,.0f}",
            f"{entry.prediction.mfu:.1%}",
            f"{entry.prediction.utilisation:.1%}",
        )
    table.caption = "> chosen   * no other is better in days, cost and loss at once"
    return table


def _sizes_table(plan: Plan) -> Table:
    table = Table("parameters", "tokens", "per parameter", "loss", title="other sizes at the same compute")
    for entry in plan.neighbours:
        ratio = entry.tokens / entry.params
        table.add_row(format_count(entry.params), format_count(entry.tokens), f"{ratio:.3g}", f"{entry.loss:.4f}")
    return table


def _laws_table(plan: Plan) -> Table:
    columns = ("law", "parameters", "tokens", "per parameter", "loss", "beyond its runs")
    table = Table(*columns, title="every law, at this compute")
    for entry in plan.opinions:
        table.add_row(
            entry.law,
            format_count(entry.params) + _span(entry.params_interval),
            format_count(entry.tokens),
            f"{entry.tokens_per_parameter:.3g}",
            "-" if entry.loss is None else f"{entry.loss:.4f}",
            f"{entry.extrapolation:.3g}x" if entry.extrapolation > 1 else "no",
        )
    return table


def _span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({format_count(interval[0])} - {format_count(interval[1])})"


def print_prediction(console: Console, shape: Shape, layout: Layout, sync: Sync, prediction: Prediction) -> None:
    """Print what a fixed layout will do."""
    table = Table("prediction", "")
    table.add_row("model", f"{format_count(shape.params)} parameters")
    table.add_row("layout", _layout_line(layout, prediction))
    table.add_row("sync", sync.describe())
    table.add_row("step", f"{prediction.step_seconds:.4g} s, {format_count(prediction.tokens_per_second)} tokens/s")
    table.add_row("of it", _parts_line(prediction.parts, prediction.step_seconds))
    table.add_row(
        "speed",
        f"{prediction.tflops_per_accelerator:.4g} TFLOP/s each ({prediction.hardware_tflops_per_accelerator:.4g} with "
        f"recomputation), MFU {prediction.mfu:.1%}",
    )
    table.add_row("memory", _memory_line(prediction))
    if sync.kind != "none":
        table.add_row(
            "links",
            f"{format_bytes(prediction.sent_bytes)} a step leave each site, {prediction.link_seconds:.3g} s on the "
            f"slowest, {prediction.exposed_seconds:.3g} s exposed, utilisation {prediction.utilisation:.1%}",
        )
    console.print(table)
    if not prediction.fits:
        console.print("[red]it does not fit into memory[/red]", highlight=False)


def _parts_line(parts: Mapping[str, float], step: float) -> str:
    shown = sorted(parts.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{name} {seconds / step:.1%}" for name, seconds in shown if seconds > 0.0005 * step)
