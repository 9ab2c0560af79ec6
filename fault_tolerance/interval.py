"""How often to save: Young's and Daly's intervals, and what a run can expect to keep of its time. Pure arithmetic."""

import math


def young_interval(stall_seconds: float, failure_seconds: float) -> float:
    """Return Young's optimum (1974), sqrt(2 d M), for a stall d and a mean time M between failures."""
    return math.sqrt(2 * stall_seconds * failure_seconds)


def daly_interval(stall_seconds: float, failure_seconds: float) -> float:
    """Return Daly's optimum (2006, eq. 37), the seconds of training between two saves.

    For d < 2 M it is sqrt(2 d M) (1 + sqrt(d / 2M) / 3 + (d / 2M) / 9) - d, and M otherwise.
    """
    if stall_seconds >= 2 * failure_seconds:
        return failure_seconds
    part = stall_seconds / (2 * failure_seconds)
    return young_interval(stall_seconds, failure_seconds) * (1 + math.sqrt(part) / 3 + part / 9) - stall_seconds


def expected_goodput(
    interval_seconds: float, stall_seconds: float, failure_seconds: float, restart_seconds: float
) -> float:
    """Return the share of time that makes new steps, with exponential failures (Daly 2006, eq. 20).

    It is tau / (M e^(R / M) (e^((tau + d) / M) - 1)).
    """
    growth = math.expm1((interval_seconds + stall_seconds) / failure_seconds)
    return interval_seconds / (failure_seconds * math.exp(restart_seconds / failure_seconds) * growth)


def replay_goodput(
    kill_seconds: list[float],
    total_seconds: float,
    *,
    interval_seconds: float,
    stall_seconds: float,
    durable_seconds: float,
    restart_seconds: float,
) -> float:
    """Return the share of time that makes new steps when a run is killed at given times.

    Args:
        kill_seconds: from the start of the run, in order.
        total_seconds: after which the run is looked at.
        durable_seconds: from the start of a save until it counts; training goes on meanwhile.
        restart_seconds: from a kill to the next step.
    """
    kept, started = 0.0, restart_seconds
    for end in [*kill_seconds, total_seconds]:
        working = max(end - started, 0.0)
        period = interval_seconds + stall_seconds
        if end >= total_seconds:
            saves = math.floor(working / period)
            kept += working - saves * stall_seconds
            break
        # The last save that was durable when the run was killed.
        saves = math.floor(max(working - durable_seconds + stall_seconds, 0.0) / period)
        kept += saves * interval_seconds
        started = end + restart_seconds
    return kept / total_seconds
