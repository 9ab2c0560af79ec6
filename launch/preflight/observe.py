"""What a rank sees of itself and its machine: plain values, or {"error": why not}."""

import os
import resource
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.data.config import Packing
from isthmus.errors import UserError
from isthmus.fault_tolerance.filesystem import free_bytes
from isthmus.launch.preflight.versions import versions
from isthmus.launch.probe import machine
from isthmus.parallelism.sites.config import SyncKind
from isthmus.train.config import Config
from isthmus.train.planner.memory import checkpoint_bytes
from isthmus.train.planner.shape import shape_of
from isthmus.train.validate import Plan, load_corpus

Clock = Callable[[], float]  # seconds since 1970

_FILES_OF_A_PROCESS = 256  # libraries, logs, pipes, the checkpoint's writer, TensorBoard
_OUTER_BYTES = 8  # per parameter: local sync's outer parameters and momentum
_LEAST_WRITTEN = 1 << 20
_WRITE_BYTES = 4 << 20
_SAMPLED_WINDOWS, _SAMPLED_TOKENS = 16, 256


@dataclass(frozen=True)
class Rank:
    """This process among the ranks of its site, and on its machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Rank":
        return cls(
            rank=int(environment.get("RANK", 0)),
            size=int(environment.get("WORLD_SIZE", 1)),
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", 1)),
            # Several of Slurm's nodes may live on one machine.
            node=environment.get("SLURMD_NODENAME") or socket.gethostname(),
        )


def tried(probe: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a probe finds; a probe that fails is a finding and not the end of the preflight."""
    try:
        return probe()
    except Exception as error:
        return {"error": str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"}


def observe(config: Config, plan: Plan, rank: Rank, *, device: str, matmul_seconds: float, disk_bytes: int) -> Any:
    """Return everything that a rank can see alone; the first rank of a machine reads the data too."""
    seen = {
        "rank": rank.rank,
        "node": rank.node,
        "versions": tried(versions),
        "device": tried(lambda: device_facts(device)),
        "files": tried(lambda: open_file_limits(files_needed(config, rank))),
        "matmul": tried(lambda: matmul(device, config.train.precision.name, matmul_seconds)),
        "disk": tried(lambda: disk(plan.folder, config, rank.local_size, disk_bytes)),
    }
    if rank.local_rank == 0:
        seen["data"] = tried(lambda: data(config, plan))
        seen["network"] = tried(network_limits)
    return seen


def device_facts(device: str) -> dict[str, Any]:
    """Return kind, name, count and memory of this rank's device; a CPU's memory is the machine's."""
    import torch

    free: float
    total: float
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        count = torch.cuda.device_count()
    else:
        free, total = machine.machine_memory("MemAvailable"), machine.machine_memory("MemTotal")
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "kind": device,
        "name": machine.device_name(device),
        "count": count,
        "memory_bytes": float(total),
        "free_bytes": float(free),
    }


def files_needed(config: Config, rank: Rank) -> int:
    """Return how many files and sockets a training rank may hold open at once."""
    others = max(len(config.sites.names) - 1, 0) if config.sync.kind is not SyncKind.none else 0
    hosted = rank.size * (others + 1) if others and rank.rank == 0 else 0  # the meeting's connections, if it is here
    groups = 2 * rank.size  # Gloo joins every two ranks of a group, in the world's and in smaller ones
    return _FILES_OF_A_PROCESS + config.data.open_files + others * config.lane.streams + hosted + groups


def open_file_limits(needed: int) -> dict[str, Any]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = 1 << 30
    return {
        "soft": unlimited if soft == resource.RLIM_INFINITY else soft,
        "hard": unlimited if hard == resource.RLIM_INFINITY else hard,
        "needed": needed,
    }


def matmul(device: str, precision: str, seconds: float) -> dict[str, Any]:
    """Return sustained FLOP/s, the share of the processor that this rank got, and the data sheet's peak if known."""
    from isthmus.parallelism.config import Precision
    from isthmus.train.hardware import peak_flops

    flops, share = machine.sustained_flops(device=device, precision=precision, seconds=seconds)
    # fp8 is measured in bf16: the product at hand for every GPU.
    sheet = Precision.bf16 if precision == "fp8" else Precision[precision]
    return {"flops": flops, "cpu_share": share, "peak": peak_flops(sheet) if device == "cuda" else None}


def checkpoint_folder(folder: Path) -> Path:
    """Return where checkpoints go; until the first one the run folder stands for it."""
    checkpoints = folder / "checkpoints"
    return checkpoints if checkpoints.is_dir() else folder


def bytes_of_a_save(config: Config) -> float:
    """Return the bytes of a checkpoint of this site, all ranks together."""
    shape = shape_of(config.model)
    outer = _OUTER_BYTES * shape.params if config.sync.kind is SyncKind.local else 0
    return checkpoint_bytes(shape) + outer


def disk(folder: Path, config: Config, local_ranks: int, disk_bytes: int) -> dict[str, Any]:
    """Return free and needed bytes of the checkpoint folder, and how fast this rank writes there while others do.

    It writes for good (fsync), a quarter of what is free at most, and removes it again.
    """
    needed = bytes_of_a_save(config)
    found: dict[str, Any] = {"path": str(folder), "save_bytes": needed}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = checkpoint_folder(folder)
        found |= {"path": str(target), "free_bytes": free_bytes(target)}
        size = max(min(disk_bytes, int(found["free_bytes"] / 4 / local_ranks)), _LEAST_WRITTEN)
        seconds = _write(target / f".preflight-{secrets.token_hex(8)}", size)
        found |= {"written_bytes": size, "bytes_per_second": size / seconds}
    except OSError as error:
        found["error"] = error.strerror or str(error)
    return found


def _write(path: Path, size: int) -> float:
    """Return the seconds that it takes until so many bytes are on the disk."""
    content = os.urandom(_WRITE_BYTES)  # some disks compress
    started = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        left = size
        while left > 0:
            left -= os.write(descriptor, content[: min(left, len(content))])
        os.fsync(descriptor)
        return max(time.perf_counter() - started, 1e-6)
    finally:
        os.close(descriptor)
        with suppress(OSError):
            path.unlink()


@contextmanager
def marked(folder: Path) -> Iterator[str | None]:
    """Within: a file lies in the checkpoint folder by which another machine knows it for the same; yield its name."""
    name = f".preflight-{secrets.token_hex(8)}"
    path = checkpoint_folder(folder) / name
    try:
        path.touch(exist_ok=False)
    except OSError:
        yield None  # that it cannot be written is known by now
        return
    try:
        yield name
    finally:
        with suppress(OSError):
            path.unlink()


def data(config: Config, plan: Plan) -> dict[str, Any]:
    """Return what each source is, by its fingerprint and by a sample of the tokens that are really there."""
    import hashlib

    import numpy as np

    corpus, _ = load_corpus(config, plan)
    found = {}
    for name, source in corpus.sources.items():
        stream = source.train
        # Windows that are packed are read whole, by their numbers; others from any token on.
        length = config.train.sequence_length
        packed = config.data.packing is Packing.best_fit
        last = stream.windows(length) - 1 if packed else max(len(stream) - _SAMPLED_TOKENS, 0)
        starts = [last * number // (_SAMPLED_WINDOWS - 1) for number in range(_SAMPLED_WINDOWS)]
        width = length + 1 if packed else min(_SAMPLED_TOKENS, len(stream))
        rows = np.zeros((_SAMPLED_WINDOWS, width), dtype=stream.dtype)
        if broken := stream.read(starts, rows).bad:
            raise UserError(next(iter(broken.values())), where=f"data.sources.{name}", fix="copy the data anew")
        found[name] = f"{source.fingerprint[:12]}/{hashlib.sha256(rows.tobytes()).hexdigest()[:8]}"
    return {"sources": found}


def network_limits() -> dict[str, Any]:
    """Return what the kernel allows TCP: the largest buffers that it gives by itself, and the congestion controls."""
    controls = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    largest = [int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in ("tcp_rmem", "tcp_wmem")]
    return {"controls": controls, "largest_buffer": min(largest)}
