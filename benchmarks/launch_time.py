"""From the command to the end of the first step: `isthmus launch` beside bare torchrun, two ranks on this machine.

python benchmarks/launch_time.py [--rounds N] [--json FILE]

The two take turns; the figure is the ratio of the medians, of wall-clock and of CPU seconds.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = [
    "model=nano",
    "train.steps=100000",
    "train.global_batch=4",
    "train.sequence_length=32",
    "schedule=constant",
    "schedule.warmup_tokens=0",
    "log.tensorboard=false",
    "checkpoint.every_steps=0",
    "run.name=r",
    *(f"data.sources.{name}.max_epochs=null" for name in ("web", "transcripts", "synthetic")),
]
COMMANDS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "isthmus.train"],
    "isthmus launch": [sys.executable, "-m", "isthmus.launch.cli", "launch", "launch.processes=2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(arguments.rounds + 1):
        # Whoever comes second finds a warmer machine.
        order = list(COMMANDS) if number % 2 else list(reversed(COMMANDS))
        for name in order:
            wall, cpu = first_step(COMMANDS[name])
            if number:  # the first round fills caches
                seconds[name].append(wall)
                cpu_seconds[name].append(cpu)
    result: dict[str, object] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "load": os.getloadavg()}
    for what, values in (("wall-clock", seconds), ("CPU", cpu_seconds)):
        medians = {name: statistics.median(values[name]) for name in COMMANDS}
        ratio = medians["isthmus launch"] / medians["torchrun"]
        result[f"{what} ratio"] = ratio
        shown = ", ".join(f"{name} {median:.1f} s" for name, median in medians.items())
        print(f"{what} seconds to the first step: {shown}; ratio {ratio:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def first_step(command: list[str]) -> tuple[float, float]:
    """Return the seconds of wall clock until the first step is logged, and the CPU seconds of all processes by then."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder, "runs/r/main/metrics.jsonl")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        before = _cpu_seconds()
        started = time.perf_counter()
        process = subprocess.Popen(
            [*command, *RUN], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not metrics.exists() or not metrics.read_bytes().endswith(b"\n"):
            assert process.poll() is None, f"{command} ended with {process.returncode}"
            time.sleep(0.01)
        wall = time.perf_counter() - started
        process.send_signal(signal.SIGTERM)
        process.wait()
        return wall, _cpu_seconds() - before


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
