"""The figures at the end of a lab: one row a site, and their total."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from isthmus.launch.lab.network import Counts
from isthmus.launch.lab.watch import SiteLog, steps_between, waiting_share
from isthmus.units import format_bytes, format_count


def site_result(name: str, site: int, sites: int, log: SiteLog, counts: Counts, exit_code: int) -> dict[str, Any]:
    """Return the figures of one site.

    Times are of all steps but those of the first row, in which libraries warm up. `bytes_*` are what the lane counted
    at its sockets; `wire_bytes_*` what the relay saw, with headers, handshakes and repeats.
    """
    rows = log.trained
    measured = rows[1:] or rows
    steps = (steps_between(rows)[1:] or steps_between(rows)) if rows else []
    seconds = sum(row["step_seconds"] * count for row, count in zip(measured, steps, strict=True))
    tokens = sum(
        row["tokens_per_second"] * row["step_seconds"] * count for row, count in zip(measured, steps, strict=True)
    )
    result: dict[str, Any] = {
        "site": name,
        "exit_code": exit_code,
        "step": rows[-1]["step"] if rows else 0,
        "loss": rows[-1]["loss"] if rows else None,
        "held_out_loss": next((row["held_out_loss"] for row in reversed(log.rows) if "held_out_loss" in row), None),
        "utilisation": 1.0 - waiting_share(measured, steps) if measured else None,
        "tokens_per_second": tokens / seconds / sites if seconds else None,
        "step_seconds": seconds / sum(steps) if steps else None,
        "bytes_sent": int(sum(row.get("wan_bytes_sent", 0) for row in rows)),
        "bytes_received": int(sum(row.get("wan_bytes_received", 0) for row in rows)),
        "exposed_seconds": sum(row.get("wan_exposed_seconds", 0.0) for row in measured),
        "rounds": int(rows[-1].get("round", 0)) if rows else 0,
    }
    if counts:
        result["wire_bytes_sent"] = sum(c["wire_bytes"] for (source, _), c in counts.items() if source == site)
        result["wire_bytes_received"] = sum(c["wire_bytes"] for (_, target), c in counts.items() if target == site)
        result["packets_dropped"] = sum(c["dropped"] for (source, _), c in counts.items() if source == site)
    return result


def total_of(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Add up what adds up; loss and utilisation are means over the sites."""
    total: dict[str, Any] = {"site": "total", "step": min(result["step"] for result in results)}
    for name in results[0]:
        values = [result[name] for result in results]
        if name in ("site", "step", "exit_code", "held_out_loss") or any(value is None for value in values):
            continue
        mean = name in ("loss", "utilisation", "step_seconds", "rounds")
        total[name] = sum(values) / len(values) if mean else sum(values)
    return total


def results_table(results: Sequence[dict[str, Any]], total: dict[str, Any]) -> Table:
    table = Table("site", "step", "loss", "utilised", "tokens/s", "s/step", "sent", "received", "exposed s", "rounds")
    for result in [*results, total]:
        table.add_row(
            result["site"],
            str(result["step"]),
            _number(result.get("loss"), ".4f"),
            _number(result.get("utilisation"), ".1%"),
            format_count(result["tokens_per_second"]) if result.get("tokens_per_second") else "-",
            _number(result.get("step_seconds"), ".3f"),
            format_bytes(result["bytes_sent"]),
            format_bytes(result["bytes_received"]),
            _number(result.get("exposed_seconds"), ".2f"),
            _number(result.get("rounds"), ".0f"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
