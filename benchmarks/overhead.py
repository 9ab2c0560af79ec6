"""What a run costs outside the model: CPU seconds from command to first step, and the loop's share of a step.

    python benchmarks/overhead.py [--steps 20] [--out FILE]

The loop's share is measured inside a real run of `model=tiny`: all outside `forward_backward`, `gradient_norm` and
`step` (data, metrics, TensorBoard, progress, agreement to stop) over the whole, in CPU seconds.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SETTINGS = ["model=tiny", "train.micro_batch=4", "train.global_batch=4", "train.sequence_length=256"]


def start_up_cpu_seconds(cache: str) -> float:
    """Return the CPU seconds of a whole process that makes one step of `nano` and ends."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = ["train", "model=nano", "train.steps=1", f"data.cache_dir={cache}", f"run.dir={folder}"]
        subprocess.run([sys.executable, "-m", "isthmus.launch.cli", *words], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loop_share(cache: str, steps: int) -> tuple[float, float]:
    """Return (seconds outside the engine's three calls, seconds in all) per step, in CPU seconds, medians."""
    from rich.console import Console

    from isthmus.config import compose
    from isthmus.parallelism.engine import Engine
    from isthmus.train import loop
    from isthmus.train.assembly import World, build_run
    from isthmus.train.config import Config
    from isthmus.train.stop import StopRequest
    from isthmus.train.validate import plan_run

    inside: list[float] = []

    def timed(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.process_time()
            answer = method(*args, **kwargs)
            inside.append(time.process_time() - started)
            return answer

        return call

    for name in ("forward_backward", "gradient_norm", "step"):
        setattr(Engine, name, timed(getattr(Engine, name)))
    with tempfile.TemporaryDirectory() as folder:
        words = [*SETTINGS, f"train.steps={steps}", "train.threads=1", f"data.cache_dir={cache}", f"run.dir={folder}"]
        config = compose(Config, "train", words)
        plan = plan_run(config, world_size=1)
        console = Console(file=sys.stderr, force_terminal=True)  # the live line is the dearer one
        with build_run(config, plan, World(0, 1), console, StopRequest()) as run:
            ends: list[float] = []
            original = run.engine.any_rank
            run.engine.any_rank = lambda flag: (ends.append(time.process_time()), original(flag))[1]  # type: ignore
            loop.train(run)
    whole = [b - a for a, b in itertools.pairwise(ends)]
    per_step = [sum(inside[3 * i : 3 * i + 3]) for i in range(1, len(ends))]
    outside = [total - engine for total, engine in zip(whole, per_step, strict=True)]
    return statistics.median(outside), statistics.median(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        cold = start_up_cpu_seconds(cache)
        warm = statistics.median(start_up_cpu_seconds(cache) for _ in range(3))
        print(f"a run of one step, all of it: {cold:.1f} CPU s with an empty cache, {warm:.1f} with a full one")
        outside, whole = loop_share(cache, options.steps)
    print(
        f"outside forward, backward and optimizer: {1e3 * outside:.1f} of {1e3 * whole:.0f} ms, {outside / whole:.2%}"
    )
    if options.out:
        figures = {"start_cold_cpu_s": cold, "start_cpu_s": warm, "outside_s": outside, "step_s": whole}
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
