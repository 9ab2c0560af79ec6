"""What a device can do at best, for MFU."""

import re
import time

import torch

from isthmus.parallelism.config import Precision

# Dense peaks in TFLOP/s from NVIDIA's data sheets, without structured sparsity: (bf16, fp8, fp32 without TF32).
_GPU_PEAKS: dict[str, tuple[float, float, float]] = {
    "A100": (312.0, 312.0, 19.5),  # A100 data sheet, 2021; no fp8
    "H100 PCIe": (756.0, 1513.0, 51.0),  # H100 data sheet, 2023
    "H100 NVL": (835.0, 1671.0, 60.0),  # H100 data sheet, 2024
    "H100": (989.4, 1978.9, 67.0),  # H100 SXM, data sheet, 2023
    "H200 NVL": (835.0, 1671.0, 60.0),  # H200 data sheet, 2024
    "H200": (989.4, 1978.9, 67.0),  # H200 SXM, data sheet, 2024
    "B200": (2250.0, 4500.0, 75.0),  # HGX B200 data sheet, 2024, an eighth of the board
    "L40S": (362.1, 733.0, 91.6),  # L40S data sheet, 2023
    "L40": (181.0, 362.0, 90.5),  # L40 data sheet, 2022
    "L4": (121.0, 242.0, 30.3),  # L4 data sheet, 2023
    "V100": (125.0, 125.0, 15.7),  # V100 data sheet, 2020: fp16 tensor cores
}


def peak_flops(precision: Precision) -> float | None:
    """Return the device's peak FLOP/s at a precision: from the data sheet for a known GPU, measured on a CPU.

    None for a GPU that the table does not know; log.peak_tflops says it then.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        column = {Precision.bf16: 0, Precision.fp8: 1, Precision.fp32: 2}[precision]
        # Whole words: an "L40" is no "L4". A slice of a GPU (MIG) has a peak that the table does not know.
        words = set() if "MIG" in name else set(re.split(r"[\s-]+", name))
        matches = [model for model in _GPU_PEAKS if words.issuperset(model.split())]
        return _GPU_PEAKS[max(matches, key=len)][column] * 1e12 if matches else None
    return measured_matmul_flops(torch.float32 if precision is Precision.fp32 else torch.bfloat16)


def measured_matmul_flops(dtype: torch.dtype, size: int = 768, seconds: float = 0.15) -> float:
    """Return the best FLOP/s of square matrix products on this process' threads within about `seconds`."""
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    left @ right
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
