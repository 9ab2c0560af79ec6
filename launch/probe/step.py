"""Whole training steps of a model on this machine: in several copies that share it, or as sites of the lab."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_WARM_UP = 2  # steps in which libraries load and caches fill


def step_seconds(
    overrides: Sequence[str], *, steps: int = 10, copies: int = 1, timeout_seconds: float = 600.0
) -> float:
    """Return the median seconds of a step of `isthmus train` with these overrides, over all copies that run at once.

    Raises:
        RuntimeError: a copy failed; its last line.
    """
    with tempfile.TemporaryDirectory(prefix="isthmus-probe-") as folder:
        command = [sys.executable, "-m", "isthmus.launch.cli", "train", *overrides, f"train.steps={steps + _WARM_UP}"]
        processes = []
        for copy in range(copies):
            words = [f"run.dir={folder}/{copy}", "log.tensorboard=false", "log.every_steps=1"]
            with Path(folder, f"{copy}.log").open("wb") as log:
                processes.append(subprocess.Popen([*command, *words], stdout=log, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(timeout=timeout_seconds) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        for copy, code in enumerate(codes):
            if code:
                lines = Path(folder, f"{copy}.log").read_text(errors="replace").strip().splitlines()
                raise RuntimeError(lines[-1] if lines else f"exit code {code}")
        seconds: list[float] = []
        for path in Path(folder).glob("*/*/main/metrics.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            seconds += [row["step_seconds"] for row in rows if row["step"] > _WARM_UP]
        return statistics.median(seconds)


def lab_step_seconds(
    overrides: Sequence[str], *, sites: int = 2, steps: int = 14, timeout_seconds: float = 600.0
) -> float:
    """Return the seconds of a step of sites of the lab that send nothing: with its relay and lanes, without their wait.

    Args:
        overrides: of `isthmus train`; `train.global_batch` is of all sites.

    Raises:
        RuntimeError: the lab failed; its last line.
    """
    # A round that is never due, over links without a limit.
    silent = [f"sync.every={10 * steps}", "sync.fragments=1", "sync.overlap_steps=0"]
    free = ["lab.bandwidth_mbps=null", "lab.rtt_ms=0", f"lab.sites={sites}"]
    with tempfile.TemporaryDirectory(prefix="isthmus-probe-") as folder:
        command = [sys.executable, "-m", "isthmus.launch.cli", "lab", "--json", *overrides, f"train.steps={steps}"]
        more = [f"run.dir={folder}", "log.tensorboard=false", "sync=local", *silent, *free]
        result = subprocess.run([*command, *more], capture_output=True, text=True, timeout=timeout_seconds)
        if result.returncode:
            raise RuntimeError((result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1])
        total = json.loads(result.stdout)["total"]
        return float(total["step_seconds"] * total["utilisation"])
