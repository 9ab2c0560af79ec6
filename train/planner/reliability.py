"""Failures, checkpoints and what is left of the time: Daly's interval, goodput, spares."""

import math
from dataclasses import dataclass

from isthmus.errors import UserError

_HOST_COPY_BYTES_PER_SECOND = 20e9  # from an accelerator to its host: PCIe 4 x16 reaches about 25 of 32 GB/s


def daly_interval(stall: float, between_failures: float) -> float:
    """Return the seconds of work between checkpoints that lose least (Daly 2006, equation 37; Young's is the root).

    Args:
        stall: seconds that a checkpoint stops training for.
        between_failures: mean seconds between failures of the whole job.
    """
    if stall >= 2 * between_failures:
        return between_failures
    part = stall / (2 * between_failures)
    return math.sqrt(2 * stall * between_failures) * (1 + math.sqrt(part) / 3 + part / 9) - stall


def goodput(interval: float, stall: float, between_failures: float, restart: float) -> float:
    """Return useful / elapsed time with exponential failures (Daly 2006): tau / (M e^(R/M) (e^((tau + d)/M) - 1))."""
    M = between_failures
    exponent = (interval + stall) / M
    if exponent > 500:
        return 0.0
    return interval / (M * math.exp(restart / M) * math.expm1(exponent))


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """`stall_seconds` stop training; `write_seconds` pass until the checkpoint is durable, beside training."""

    failures_per_day: float
    hours_between_failures: float
    stall_seconds: float
    write_seconds: float
    interval_seconds: float
    goodput: float
    restart_seconds: float
    spares: int  # accelerators of all sites together

    def goodput_at(self, interval: float) -> float:
        """Return the goodput at another interval. What was not durable yet is lost too: it lengthens the restart."""
        return goodput(
            interval,
            self.stall_seconds,
            self.hours_between_failures * 3600,
            self.restart_seconds + self.write_seconds,
        )


def reliability(
    *,
    failures_per_hour: float,
    rank_state_bytes: float,
    checkpoint_bytes: float,
    storage_bytes_per_second: float,
    restart_seconds: float,
    repair_hours: float,
    node_size: int,
) -> Reliability:
    """Return interval and goodput of a job that stops as a whole at every failure.

    Saves are asynchronous: training stops while the state is copied to the host, and storage writes beside it. A
    save cannot begin before the last one is durable, so that the interval is never shorter than a write.

    Raises:
        UserError: failures come faster than the job can restart.
    """
    between = 3600.0 / failures_per_hour
    stall = rank_state_bytes / _HOST_COPY_BYTES_PER_SECOND
    write = checkpoint_bytes / storage_bytes_per_second
    interval = max(daly_interval(stall, between), write)
    result = Reliability(
        failures_per_day=24 * failures_per_hour,
        hours_between_failures=between / 3600,
        stall_seconds=stall,
        write_seconds=write,
        interval_seconds=interval,
        goodput=goodput(interval, stall, between, restart_seconds + write),
        restart_seconds=restart_seconds,
        spares=spares(failures_per_hour * repair_hours, node_size),
    )
    if result.goodput < 0.05:
        raise UserError(
            f"a failure every {between / 60:.0f} minutes leaves {result.goodput:.1%} of the time",
            where="cluster",
            fix="use fewer accelerators, faster storage (storage_gigabytes) or a shorter plan.restart_minutes",
        )
    return result


def spares(expected: float, node_size: int, risk: float = 0.01) -> int:
    """Return accelerators, in whole nodes, of which more are broken at once with a probability of `risk` at most.

    Broken ones are Poisson around `expected` = failures during a repair; each takes its node with it.
    """
    nodes, term = 0, math.exp(-expected) if expected < 700 else 0.0
    if not term:  # normal approximation
        return math.ceil(expected + 2.33 * math.sqrt(expected)) * node_size
    below = term
    while below < 1 - risk:
        nodes += 1
        term *= expected / nodes
        below += term
    return nodes * node_size
