"""All-reduces among ranks of this machine: bandwidth and latency of a step of the ring.

The ranks are processes of their own: `python -m isthmus.launch.probe.collectives RANK RANKS PORT DEVICE`.
"""

import json
import socket
import statistics
import subprocess
import sys
import time

_LARGE, _SMALL = 16 << 20, 4 << 10
_ROUNDS = 12


def all_reduce(ranks: int, device: str, timeout_seconds: float = 120.0) -> dict[str, float]:
    """Return bytes per second of a rank's ring and seconds of latency per step, of so many ranks here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "isthmus.launch.probe.collectives"]
    words = [[*command, str(rank), str(ranks), str(port), device] for rank in range(ranks)]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for line in words]
    try:
        output, _ = processes[0].communicate(timeout=timeout_seconds)
        large, small = json.loads(output)
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.wait()
    return ring_rate(ranks, _LARGE, large, small)


def _measure(rank: int, ranks: int, port: int, device: str) -> list[float]:
    """Return the median seconds of a large and of a small all-reduce."""
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(rank)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    found = [all_reduce_seconds(size, device) for size in (_LARGE, _SMALL)]
    dist.destroy_process_group()
    return found


def all_reduce_seconds(size: int, device: str, rounds: int = _ROUNDS) -> float:
    """Return the median seconds of an all-reduce of so many bytes in the world's group, after two to warm up."""
    import torch
    import torch.distributed as dist

    values = torch.ones(size // 4, device=device)
    samples = []
    for _ in range(rounds):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(values)
        if device == "cuda":
            torch.cuda.synchronize()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples[2:])


def ring_rate(ranks: int, size: int, large_seconds: float, small_seconds: float) -> dict[str, float]:
    """Return bytes per second of a rank's ring and seconds of latency per step, from a large and a small all-reduce."""
    share = 2 * (ranks - 1) / ranks
    return {
        "ranks": ranks,
        "bytes_per_second": share * size / max(large_seconds - small_seconds, 1e-9),
        "latency_seconds": small_seconds / (2 * (ranks - 1)),
    }


if __name__ == "__main__":
    measured = _measure(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    if sys.argv[1] == "0":
        print(json.dumps(measured))
