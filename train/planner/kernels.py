"""Seconds of single kernels and collectives on one accelerator."""

import math
from dataclasses import dataclass
from functools import cached_property

from isthmus.train.planner.accelerators import Accelerator
from isthmus.train.planner.constants import Constants

# Tiles of a matrix product and their speed relative to the largest: smaller ones reload operands more often.
_TILES = ((256, 128, 1.0), (128, 128, 0.92), (128, 64, 0.78), (64, 64, 0.6))
_EXPONENTIALS_PER_CYCLE = 16  # per streaming multiprocessor (CUDA C++ programming guide, arithmetic instructions)


@dataclass(frozen=True)
class Device:
    """A data sheet, constants and a precision: the speeds that follow."""

    sheet: Accelerator
    constants: Constants
    precision: str = "bf16"

    @cached_property
    def number_bytes(self) -> int:
        """Bytes of an activation."""
        return 4 if self.precision == "fp32" else 2

    @cached_property
    def matmul_flops(self) -> float:
        return self.sheet.peak_flops(self.precision) * self.constants.matmul_efficiency

    @cached_property
    def attention_flops(self) -> float:
        """Speed of the products inside attention, which stay in bf16 where others are fp8."""
        precision = "fp32" if self.precision == "fp32" else "bf16"
        return self.sheet.peak_flops(precision) * self.constants.matmul_efficiency

    @cached_property
    def memory_rate(self) -> float:
        return self.sheet.memory_bytes_per_second * self.constants.bandwidth_efficiency

    @cached_property
    def exponentials_per_second(self) -> float:
        cycles = self.sheet.bf16_flops / self.sheet.unit_flops_per_cycle  # all units' cycles per second
        return cycles * _EXPONENTIALS_PER_CYCLE

    def matmul(self, m: float, n: float, k: float, *, batch: float = 1, attention: bool = False) -> float:
        """Return the seconds of `batch` products (m, k) x (k, n): tiles dealt to units in whole waves, or memory."""
        rate = (self.attention_flops if attention else self.matmul_flops) / self.sheet.units
        operand = 1 if self.precision == "fp8" and not attention else self.number_bytes
        moved = batch * (operand * (m * k + k * n) + self.number_bytes * m * n) / self.memory_rate
        if self.sheet.units == 1:
            return float(max(2 * batch * m * n * k / rate + self.constants.tile_seconds, moved))
        best = math.inf
        for rows, columns, speed in _TILES:
            tiles = math.ceil(m / rows) * math.ceil(n / columns) * batch
            waves = math.ceil(tiles / self.sheet.units)
            best = min(best, waves * (2 * rows * columns * k / (rate * speed) + self.constants.tile_seconds))
        return float(max(best, moved))

    def elementwise(self, moved_bytes: float) -> float:
        return moved_bytes / self.memory_rate

    def flash(self, tokens: float, sequence: float, heads: float, head_width: float) -> tuple[float, float]:
        """Return forward and backward seconds of causal attention that keeps scores on the chip.

        Half of the scores are masked and skipped, but for tiles on the diagonal. Exponentials do not run beside the
        products: their time is added (FlashAttention-3, arXiv 2407.08608, section 3.1, on why). Backward has five
        products for two, and adds up in memory. The two factors give the A100 the 200 and 180 TFLOP/s that
        FlashAttention-2 (arXiv 2307.08691, figures 5 and 6) shows for causal attention with heads of 128.
        """
        products = 4 * tokens * sequence * heads * head_width / 2
        exponentials = tokens * sequence * heads / 2
        forward = products / self.attention_flops
        extra = exponentials / self.exponentials_per_second if self.sheet.kind == "gpu" else 0.15 * forward
        return 1.1 * forward + extra, 2.5 * 1.3 * forward + 2 * extra


@dataclass(frozen=True)
class Group:
    """A group of ranks that talk to each other: its size, and how many of its members share a node."""

    size: int
    in_node: int


def group_of(size: int, inner: int, node: int) -> Group:
    """Return the group of `size` ranks that are `inner` ranks apart, on nodes of `node` accelerators."""
    return Group(size, max(1, min(size, node // inner if inner <= node else 1)))


def _rates(device: Device, group: Group) -> tuple[float, float]:
    """Return (bytes per second, latency per step) of a ring through the group.

    Rings between nodes go through as many network cards as the group has members in a node.
    """
    sheet, constants = device.sheet, device.constants
    inside = sheet.link_bytes_per_second * constants.link_efficiency
    if group.in_node >= group.size:
        return inside, constants.link_latency
    outside = sheet.network_bytes_per_second * constants.network_efficiency * group.in_node
    return min(inside, outside), constants.network_latency


def _hops(group: Group) -> float:
    """Return the steps of latency: around a node's ring, and up and down a tree between nodes."""
    nodes = math.ceil(group.size / group.in_node)
    return group.in_node - 1 + (math.ceil(math.log2(nodes)) if nodes > 1 else 0)


def all_reduce(device: Device, group: Group, message_bytes: float) -> float:
    """Return the seconds of an all-reduce: 2 (g - 1) / g of the message over the ring."""
    if group.size < 2:
        return 0.0
    rate, latency = _rates(device, group)
    return 2 * (group.size - 1) / group.size * message_bytes / rate + 2 * _hops(group) * latency


def gather(device: Device, group: Group, message_bytes: float) -> float:
    """Return the seconds of an all-gather to, or a reduce-scatter of, `message_bytes` per rank."""
    return all_reduce(device, group, message_bytes) / 2


def all_to_all(device: Device, group: Group, message_bytes: float) -> float:
    """Return the seconds of an all-to-all in which each rank sends `message_bytes` in all."""
    if group.size < 2:
        return 0.0
    sheet, constants = device.sheet, device.constants
    inside = sheet.link_bytes_per_second * constants.link_efficiency
    outside = sheet.network_bytes_per_second * constants.network_efficiency
    crossing = (group.size - group.in_node) / group.size
    staying = (group.in_node - 1) / group.size
    latency = constants.network_latency if crossing else constants.link_latency
    return max(message_bytes * crossing / outside, message_bytes * staying / inside) + latency * group.size**0.5


def send(device: Device, *, across_nodes: bool, message_bytes: float) -> float:
    """Return the seconds of one message from one rank to one other."""
    sheet, constants = device.sheet, device.constants
    if across_nodes:
        return message_bytes / (sheet.network_bytes_per_second * constants.network_efficiency) + (
            constants.network_latency
        )
    return message_bytes / (sheet.link_bytes_per_second * constants.link_efficiency) + constants.link_latency
