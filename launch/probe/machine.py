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


def sustained_flops(*, device: str, precision: str, seconds: float, windows: int = 3) -> tuple[float, float]:
    """Return the FLOP/s of square products over the best window, and the share of it that this process had the CPU.

    The mean over a window, not the fastest product: a rank that is held up now and then is a slow rank. The best window
    of several, because a moment's disturbance is not.
    """
    kind = torch.float32 if precision == "fp32" else torch.bfloat16
    size = 8192 if device == "cuda" else 512
    left, right = (torch.randn(size, size, dtype=kind, device=device) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    batch = 10 if device == "cuda" else 1
    left @ right
    wait()
    best, share = 0.0, 1.0
    for _ in range(windows):
        products, cpu, started = 0, time.process_time(), time.perf_counter()
        while (took := time.perf_counter() - started) < seconds or not products:
            for _ in range(batch):
                left @ right
            wait()
            products += batch
        if (flops := 2.0 * size**3 * products / took) > best:
            best, share = flops, (time.process_time() - cpu) / took
    return best, share if device == "cuda" else share / torch.get_num_threads()


def copy_bytes_per_second(device: str, seconds: float) -> float:
    """Return the bytes read and written per second by a copy that no cache holds."""
    source = torch.empty(_COPY_BYTES // 4, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _median_seconds(lambda: target.copy_(source), device, seconds)


def memory_bytes(device: str, ranks: int) -> float:
    """Return the memory of the GPU, or a rank's share of the machine's."""
    if device == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    return machine_memory("MemTotal") / ranks


def machine_memory(entry: str) -> float:
    """Return an entry of /proc/meminfo in bytes, such as MemTotal or MemAvailable."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        return 1024 * next(float(line.split()[1]) for line in file if line.startswith(f"{entry}:"))


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
