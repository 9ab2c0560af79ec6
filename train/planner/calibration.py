"""Fitting one set of constants per accelerator type to measured iterations, held near what is known of the hardware."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from isthmus.errors import UserError
from isthmus.train.planner.constants import Constants
from isthmus.train.planner.published import Case, errors

# (expected, spread of its logarithm): what microbenchmarks of an A100 give, as far as they are published.
PRIORS: dict[str, tuple[float, float]] = {
    "matmul_efficiency": (0.87, 0.04),  # large bf16 products reach 265 - 280 of 312 TFLOP/s
    "tile_seconds": (4e-6, 0.4),
    "bandwidth_efficiency": (0.82, 0.02),  # a copy reaches 1.6 - 1.7 of 2.04 TB/s
    "kernel_seconds": (4e-6, 0.4),
    "op_seconds": (5e-5, 3.0),
    "collective_host_seconds": (5e-5, 3.0),
    "link_efficiency": (0.75, 0.1),  # NCCL's large all-reduce moves 225 - 235 of 300 GB/s
    "link_latency": (6e-6, 0.7),
    "step_seconds": (2e-3, 3.0),
}
PRIOR_WEIGHT = 0.2  # errors of one layout are alike, so that rows count for less than their number


def fit_constants(cases: Sequence[Case], start: Constants, *, source: str, every: int = 3) -> Constants:
    """Return the constants that minimise soft-L1 errors of ln(predicted / measured) over every third case, and priors.

    Constants that one node cannot show (the network's) stay as they are.

    Raises:
        UserError: scipy is missing.
    """
    try:
        from scipy.optimize import least_squares
    except ImportError:
        raise UserError("fitting needs scipy", where="isthmus plan", fix="pip install 'isthmus[plan]'") from None
    names = list(PRIORS)
    expected = np.log([PRIORS[name][0] for name in names])
    spread = np.array([PRIORS[name][1] for name in names])
    chosen = cases[::every]

    def constants(logs: np.ndarray) -> Constants:
        return replace(start, source=source, **{n: float(math.exp(x)) for n, x in zip(names, logs, strict=True)})

    def residuals(logs: np.ndarray) -> np.ndarray:
        missed = np.log1p(np.array(errors(chosen, constants(logs))))
        return np.concatenate([missed, PRIOR_WEIGHT * (logs - expected) / spread])

    fitted = least_squares(residuals, expected, loss="soft_l1", f_scale=0.1, max_nfev=40)
    return constants(fitted.x)
