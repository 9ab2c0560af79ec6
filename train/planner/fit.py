"""Fitting L(N, D) = E + A / N^alpha + B / D^beta to runs: Huber loss on log L in log-sum-exp form, with a bootstrap.

As in arXiv 2203.15556, section 3.3 and arXiv 2404.10102: minimise the sum of Huber(delta = 1e-3) of
LSE(a - alpha ln N, b - beta ln D, e) - ln L with L-BFGS from a grid of starts, where A = e^a, B = e^b, E = e^e.
"""

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isthmus.errors import UserError

DELTA = 1e-3
Array = NDArray[np.float64]
# Starts as in arXiv 2203.15556, thinned: alpha, beta, e, a, b.
_GRID = ((0.0, 0.5, 1.0), (0.0, 0.5, 1.0), (-1.0, 0.0, 0.5), (0.0, 10.0, 20.0), (0.0, 10.0, 20.0))
_COLUMNS = {
    "params": ("params", "n", "parameters", "model size"),
    "tokens": ("tokens", "d", "training tokens"),
    "flops": ("flops", "flop", "c", "training flop"),
    "loss": ("loss", "l", "final loss"),
}
LEAST_POINTS = 6


@dataclass(frozen=True)
class Points:
    """Runs: (K,) parameters, tokens and final losses."""

    params: Array
    tokens: Array
    loss: Array

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, chosen: Any) -> "Points":
        return Points(self.params[chosen], self.tokens[chosen], self.loss[chosen])

    @property
    def largest_flops(self) -> float:
        return float((6 * self.params * self.tokens).max())

    @property
    def smallest_flops(self) -> float:
        return float((6 * self.params * self.tokens).min())


@dataclass(frozen=True)
class Fit:
    """Constants (E, A, B, alpha, beta), the sum of Huber losses there, and the starts that agree on it."""

    constants: tuple[float, float, float, float, float]
    objective: float

    @property
    def exponent(self) -> float:
        return self.constants[4] / (self.constants[3] + self.constants[4])


def read_points(path: Path) -> Points:
    """Read runs from a CSV file with columns params, loss, and tokens or flops (then D = flops / 6 params).

    Raises:
        UserError: the file, a column or a number is wrong; names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix="give a CSV file of runs") from None
    if not rows:
        raise UserError("holds no runs", where=str(path), fix="columns: params, tokens (or flops), loss")
    names = {str(name).strip().lower(): name for name in rows[0]}
    found = {
        what: next((names[alias] for alias in aliases if alias in names), None) for what, aliases in _COLUMNS.items()
    }
    if found["params"] is None or found["loss"] is None or (found["tokens"] is None and found["flops"] is None):
        raise UserError(
            f"has the columns {', '.join(names)}", where=str(path), fix="needed are params, loss, and tokens or flops"
        )
    columns: dict[str, Array] = {}
    for what, name in found.items():
        if name is None:
            continue
        values = []
        for line, row in enumerate(rows, 2):
            try:
                value = float(row[name])
            except (TypeError, ValueError):
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} is {row[name]!r}", where=f"{path}:{line}", fix="give a positive number")
            values.append(value)
        columns[what] = np.array(values)
    tokens = columns["tokens"] if "tokens" in columns else columns["flops"] / (6 * columns["params"])
    points = Points(columns["params"], tokens, columns["loss"])
    for what, values_K in (("params", points.params), ("tokens", points.tokens)):
        if len(np.unique(values_K)) < 3:
            raise UserError(
                f"{len(points)} runs with {len(np.unique(values_K))} different values of {what}",
                where=str(path),
                fix="a curve needs three or more",
            )
    if len(points) < LEAST_POINTS:
        raise UserError(f"{len(points)} runs for 5 constants", where=str(path), fix=f"give {LEAST_POINTS} or more")
    return points


def without_highest(points: Points, count: int) -> Points:
    """Return the points but those with the `count` highest losses, which arXiv 2404.10102 leaves out as outliers."""
    return points.take(np.sort(np.argsort(points.loss)[: len(points) - count]))


def _objective(theta: Array, n_K: Array, d_K: Array, l_K: Array) -> tuple[float, Array]:
    """Return the sum of Huber losses and its gradient in (e, a, b, alpha, beta)."""
    e, a, b, alpha, beta = theta
    terms_3K = np.stack([np.full_like(n_K, e), a - alpha * n_K, b - beta * d_K])
    top_K = terms_3K.max(axis=0)
    weights_3K = np.exp(terms_3K - top_K)
    total_K = weights_3K.sum(axis=0)
    rest_K = top_K + np.log(total_K) - l_K
    weights_3K /= total_K
    small_K = np.abs(rest_K) <= DELTA
    value = np.where(small_K, 0.5 * rest_K**2, DELTA * (np.abs(rest_K) - 0.5 * DELTA)).sum()
    slope_K = np.clip(rest_K, -DELTA, DELTA)
    gradient = np.array(
        [
            (slope_K * weights_3K[0]).sum(),
            (slope_K * weights_3K[1]).sum(),
            (slope_K * weights_3K[2]).sum(),
            -(slope_K * weights_3K[1] * n_K).sum(),
            -(slope_K * weights_3K[2] * d_K).sum(),
        ]
    )
    return float(value), gradient


def fit(points: Points, starts: Sequence[Sequence[float]] | None = None) -> Fit:
    """Return the best fit over all starts (e, a, b, alpha, beta); the published grid where none are given.

    Raises:
        UserError: scipy is missing.
    """
    minimize = _scipy_minimize()
    logs = np.log(points.params), np.log(points.tokens), np.log(points.loss)
    if starts is None:
        starts = [(e, a, b, al, be) for al, be, e, a, b in itertools.product(*_GRID)]
    # The values are tiny: scaled, so that L-BFGS' own tolerances mean what they should.
    scale = 1.0 / (len(points) * DELTA**2)

    def scaled(theta: Array) -> tuple[float, Array]:
        value, gradient = _objective(theta, *logs)
        return scale * value, scale * gradient

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-13, "gtol": 1e-9}
    best = min(
        (minimize(scaled, start, jac=True, method="L-BFGS-B", options=options) for start in starts),
        key=lambda result: float(result.fun),
    )
    e, a, b, alpha, beta = (float(value) for value in best.x)
    return Fit((math.exp(e), math.exp(a), math.exp(b), alpha, beta), float(best.fun) / scale)


def bootstrap(points: Points, best: Fit, samples: int, seed: int = 0) -> list[Fit]:
    """Refit `samples` resamplings of the points, each from the best fit and two starts beside it."""
    E, A, B, alpha, beta = best.constants
    here = (math.log(E), math.log(A), math.log(B), alpha, beta)
    beside = [
        here,
        (here[0], here[1] + 1.0, here[2] + 1.0, alpha + 0.05, beta + 0.05),
        (here[0], here[1] - 1.0, here[2] - 1.0, alpha - 0.05, beta - 0.05),
    ]
    chance = np.random.default_rng(seed)
    return [fit(points.take(chance.integers(0, len(points), len(points))), beside) for _ in range(samples)]


def _scipy_minimize() -> Any:
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise UserError("fitting needs scipy", where="isthmus plan fit", fix="pip install 'isthmus[plan]'") from None
    return minimize
