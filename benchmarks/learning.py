"""What each way of syncing costs in held-out loss, at equal tokens, with paired seeds.

    python benchmarks/learning.py [--seeds 5] [--steps 1200] [--only NAME ...] [--out FILE]

Two sites of one rank train `model=nano` on the embedded corpus over loopback; every method trains each seed (initial
weights and order of the data) once. The figure is the mean over sources of the held-out loss at the end, of the outer
parameters; a method's cost is the mean of its paired differences to exact fp32 sync, with the standard error.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BASE = "exact fp32"
LOCAL = ["sync=local", "sync.every=30", "sync.fragments=4", "sync.overlap_steps=5", "sync.wire=int4"]
CLASSICAL = ["sync=local", "sync.fragments=1", "sync.overlap_steps=0", "sync.merge=0", "sync.wire=fp32"]
METHODS = {
    BASE: ["sync=exact"],
    "exact int8": ["sync=exact", "sync.wire=int8"],
    "local H 30, P 4, tau 5, int4": LOCAL,
    "exact int4": ["sync=exact", "sync.wire=int4"],
    "exact topk 2%": ["sync=exact", "sync.wire=topk"],
    "local H 30, P 4, tau 5, fp32": [*LOCAL, "sync.wire=fp32"],
    "local H 30, P 4, tau 0, int4": [*LOCAL, "sync.overlap_steps=0", "sync.merge=0"],
    "local H 30, P 1, tau 0, fp32": [
        *LOCAL,
        "sync.fragments=1",
        "sync.overlap_steps=0",
        "sync.merge=0",
        "sync.wire=fp32",
    ],
    "local H 10, P 4, tau 2, int4": [*LOCAL, "sync.every=10", "sync.overlap_steps=2"],
    "local H 100, P 4, tau 5, int4": [*LOCAL, "sync.every=100"],
    "local topk 2%, no momentum": [
        *LOCAL,
        "sync.wire=topk",
        "sync.error_decay=0.95",
        "sync.outer_momentum=0",
        "sync.outer_learning_rate=1",
    ],
}
SETTINGS = [
    "experiment=smoke",
    "train.micro_batch=8",
    "train.threads=1",
    "eval.samples=64",
    "lab.shape=none",
    "log.tensorboard=false",
    "log.every_steps=100",
]


def held_out(method: str, seed: int, steps: int) -> dict[str, float]:
    """Train once; return the held-out loss by source."""
    words = [*SETTINGS, f"train.steps={steps}", f"eval.every_steps={steps}", f"train.seed={seed}", *METHODS[method]]
    with tempfile.TemporaryDirectory(prefix="isthmus-learning-") as folder:
        command = [sys.executable, "-m", "isthmus.launch.cli", "lab", "--json", f"run.dir={folder}", *words]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    losses: dict[str, float] = json.loads(result.stdout)["sites"][0]["held_out_loss"]
    return losses


def cost(losses: list[float], base: list[float]) -> tuple[float, float]:
    """Return mean and standard error of the paired relative differences."""
    differences = [ours / theirs - 1 for ours, theirs in zip(losses, base, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    return statistics.mean(differences), error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, help="JSON of all figures; what it holds already is not trained again")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"steps": arguments.steps, "losses": {}}
    if arguments.out and arguments.out.exists():
        results = json.loads(arguments.out.read_text())
        arguments.steps = results["steps"]
    methods = [BASE, *(name for name in arguments.only if name != BASE)]
    for seed in range(arguments.seeds):
        for method in methods:
            known = results["losses"].setdefault(method, [])
            if len(known) > seed:
                continue
            by_source = held_out(method, seed, arguments.steps)
            known.append(by_source)
            print(f"seed {seed}, {method}: {statistics.mean(by_source.values()):.4f}", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    base = [statistics.mean(run.values()) for run in results["losses"][BASE]]
    print(f"{'method':34} {'held-out loss':>14} {'cost':>8} {'2 standard errors':>18}")
    for method, runs in results["losses"].items():
        losses = [statistics.mean(run.values()) for run in runs]
        mean, error = cost(losses, base[: len(losses)])
        print(f"{method:34} {statistics.mean(losses):14.4f} {mean:8.2%} {2 * error:18.2%}")


if __name__ == "__main__":
    main()
