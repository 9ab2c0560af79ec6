"""What the cost model does not know from data sheets: one set of constants per accelerator.

The A100's are fitted to half of the layouts of a published set of measured iterations (benchmarks/planner.py refits and
checks them). Other accelerators follow from their data sheet and the A100's constants by `derive`, without a
measurement of theirs; `isthmus plan calibrate` replaces them by a machine's own.
"""

from dataclasses import dataclass, replace
from functools import cache

from isthmus.train.planner.accelerators import A100, Accelerator


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Every constant is of the whole accelerator type, never of a run."""

    matmul_efficiency: float  # of the peak, for a tile whose fixed cost is negligible
    tile_seconds: float  # fixed cost of one wave of tiles: first loads and the epilogue
    bandwidth_efficiency: float  # of the memory bandwidth, for elementwise kernels
    kernel_seconds: float  # fixed cost on the device of one elementwise kernel: start, ramp and tail
    op_seconds: float  # the host's time to launch one kernel, framework included
    collective_host_seconds: float  # the same for one collective
    link_efficiency: float  # of the bandwidth inside a node, for large messages
    link_latency: float  # of one step of a collective inside a node
    network_efficiency: float  # of the bandwidth between nodes
    network_latency: float
    step_seconds: float  # per optimizer step: the loop, the loss scale, the gradient norm's round trip
    # Of a link between sites: headers of TCP and IP take 52 of 1,500 bytes, congestion control leaves some unused.
    wan_efficiency: float = 0.95
    wan_round_seconds: float = 0.0  # of an exchange, beyond half a round trip: threads, windows that open again
    source: str


# benchmarks/planner.py --fit prints these.
A100_CONSTANTS = Constants(
    matmul_efficiency=0.8767,
    tile_seconds=3.02e-6,
    bandwidth_efficiency=0.8333,
    kernel_seconds=3.52e-6,
    op_seconds=3.53e-5,
    collective_host_seconds=1.68e-5,
    link_efficiency=0.7473,
    link_latency=7.21e-6,
    network_efficiency=0.80,
    network_latency=1.0e-5,
    step_seconds=2.69e-3,
    source="fitted to 9 of 18 layouts of 1,440 iterations on 8 A100 (vTrain, arXiv 2312.12391)",
)


def sustained_clock(sheet: Accelerator, relative_to: Accelerator = A100) -> float:
    """Return the share of the boost clock that dense matrix products can hold within the power limit, at most 1.

    Energy per FLOP falls with the process as the foundry says. Where the watts per peak FLOP/s fall further, the clock
    has to give way; power goes with about the square of the clock (frequency times a voltage that falls more slowly).
    The A100 is taken to be just at its limit, since its constants were measured at the clock that it held.
    """
    granted = sheet.watts / sheet.bf16_flops / (relative_to.watts / relative_to.bf16_flops)
    needed = sheet.energy_per_flop / relative_to.energy_per_flop
    return min(1.0, (granted / needed) ** 0.5)


def derive(sheet: Accelerator, base: Constants = A100_CONSTANTS, of: Accelerator = A100) -> Constants:
    """Return the constants of an accelerator from its data sheet and another's constants.

    Efficiencies of memory and links carry over; so do fixed seconds of tiles and of links. Matrix products also lose
    what the power limit takes. The host's seconds shrink with its single-thread speed.
    """
    if sheet.kind == "cpu":
        return replace(
            base,
            matmul_efficiency=0.75,
            tile_seconds=0.0,
            bandwidth_efficiency=0.7,
            kernel_seconds=1e-5,
            op_seconds=0.0,  # it runs its kernels itself: their fixed seconds are the device's
            collective_host_seconds=0.0,
            link_efficiency=0.5,
            link_latency=5e-5,
            network_efficiency=0.5,
            network_latency=1e-4,
            step_seconds=2e-3,
            source="assumed for CPUs; isthmus plan calibrate measures them",
        )
    return replace(
        base,
        matmul_efficiency=base.matmul_efficiency * sustained_clock(sheet, of),
        op_seconds=base.op_seconds / sheet.host_speed * of.host_speed,
        collective_host_seconds=base.collective_host_seconds / sheet.host_speed * of.host_speed,
        step_seconds=base.step_seconds / sheet.host_speed * of.host_speed,
        source=f"derived from the data sheet ({sheet.source}) and the A100's constants",
    )


@cache
def constants_of(sheet: Accelerator) -> Constants:
    return A100_CONSTANTS if sheet == A100 else derive(sheet)
