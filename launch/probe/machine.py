"""One device: matrix products at given shapes, memory bandwidth."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

_COPY_BYTES = 256 << 20


def device_name(device: str) -> str:
    """Return a GPU's name, or the processor's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "a CPU")


def matmuls(
    shapes: Sequence[tuple[int, int, int]], *, device: str, precision: str, seconds: float
) -> list[dict[str, float]]:
    """Return the median seconds of (m, k) x (k, n) products, each tried for about `seconds`."""
    kind = torch.float32 if precision == "fp32" else torch.bfloat16
    found = []
    for m, n, k in shapes:
        left = torch.randn(m, k, dtype=kind, device=device)
        right = torch.randn(n, k, dtype=kind, device=device)
        took = _median_seconds(lambda left=left, right=right: left @ right.t(), device, seconds)  # type: ignore[misc]
        found.append({"m": m, "n": n, "k": k, "seconds": took, "flops": 2.0 * m * n * k / took})
    return found


def copy_bytes_per_second(device: str, seconds: float) -> float:
    """Return the bytes read and written per second by a copy that no cache holds."""
    source = torch.empty(_COPY_BYTES // 4, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _median_seconds(lambda: target.copy_(source), device, seconds)


def memory_bytes(device: str, ranks: int) -> float:
    """Return the memory of the GPU, or a rank's share of the machine's."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    with open("/proc/meminfo", encoding="utf-8") as file:
        kilobytes = next(float(line.split()[1]) for line in file if line.startswith("MemTotal"))
    return kilobytes * 1024 / ranks


def _median_seconds(call: Callable[[], Any], device: str, seconds: float) -> float:
    """Return the median of single calls on a CPU; on a GPU that of batches long enough for the clock."""
    call()
    batch = 1
    samples: list[float] = []
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        wait()
        batch = 10
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(samples) < 3:
        started = time.perf_counter()
        for _ in range(batch):
            call()
        wait()
        samples.append((time.perf_counter() - started) / batch)
    return statistics.median(samples)
