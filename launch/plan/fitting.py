"""`isthmus plan fit`: a scaling law of a user's own runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from isthmus.errors import EXIT_OK, UserError
from isthmus.files import write_json
from isthmus.launch.words import Words
from isthmus.train.planner.fit import Fit, Points, bootstrap, fit, read_points, without_highest

_USAGE = """\
isthmus plan fit POINTS.csv [--out FILE] [--samples N] [--drop-highest K] [--seed N] [--json]

Fit L(N, D) = E + A / N^alpha + B / D^beta to runs: columns params, tokens (or flops), loss.
  --out FILE          where the law goes, for plan.law=FILE (law.json)
  --samples N         bootstrap refits (200)
  --drop-highest K    leave out the K highest losses (0)
"""
_NAMES = ("E", "A", "B", "alpha", "beta")


def fit_points(words: list[str]) -> int:
    """Fit, bootstrap, print, and write the law.

    Raises:
        UserError: the words, the file or its numbers are wrong.
    """
    defaults = {"--samples": "200", "--drop-highest": "0", "--seed": "0"}
    given = Words(words, verb="plan fit", flags=("--json",), options=("--out", *defaults))
    if given.help:
        print(_USAGE, end="")
        return EXIT_OK
    files, as_json = given.rest, given.flag("--json")
    if len(files) != 1:
        raise UserError(f"{len(files)} files given", where="isthmus plan fit", fix="give one CSV file of runs")
    counts = {name: _whole(name, given.value(name) or default) for name, default in defaults.items()}
    points = read_points(Path(files[0]).expanduser())
    if counts["--drop-highest"] > len(points) - 6:
        raise UserError(f"leaves fewer than 6 of {len(points)} runs", where="--drop-highest", fix="drop fewer")
    points = without_highest(points, counts["--drop-highest"])
    best = fit(points)
    samples = bootstrap(points, best, counts["--samples"], counts["--seed"])
    console = Console(stderr=as_json)
    console.print(_table(best, samples, points))
    law = law_values(points, best, samples, f"fit to {len(points)} runs of {Path(files[0]).name}")
    out = Path(given.value("--out") or "law.json").expanduser()
    try:
        write_json(out, law)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"--out={out}", fix="choose another") from None
    console.print(f"use it with: isthmus plan plan.law={out} ...", highlight=False)
    if as_json:
        print(json.dumps({**law, "objective": best.objective, "exponent": best.exponent, "file": str(out)}))
    return EXIT_OK


def law_values(points: Points, best: Fit, samples: list[Fit], source: str) -> dict[str, Any]:
    """Return the law as `plan.law=FILE` reads it."""
    return {
        **dict(zip(_NAMES, best.constants, strict=True)),
        "source": source,
        "largest_flops": points.largest_flops,
        "smallest_flops": points.smallest_flops,
        "samples": [list(sample.constants) for sample in samples],
    }


def _table(best: Fit, samples: list[Fit], points: Points) -> Table:
    table = Table(
        "constant", "value", "95% of the bootstrap", title=f"{len(points)} runs, objective {best.objective:.7f}"
    )
    for place, name in enumerate(_NAMES):
        table.add_row(name, f"{best.constants[place]:.6g}", _interval([s.constants[place] for s in samples]))
    table.add_row("a of N ~ C^a", f"{best.exponent:.4f}", _interval([sample.exponent for sample in samples]))
    return table


def _interval(values: list[float]) -> str:
    if not values:
        return "-"
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{low:.4g} to {high:.4g}"


def _whole(name: str, value: str) -> int:
    if not value.isdigit():
        raise UserError(f"is {value!r}", where=name, fix="give a whole number from 0")
    return int(value)
