"""A run that is killed again and again, beside the same run left alone: equal to the last bit, and as fast as reckoned.

    python benchmarks/soak.py [--minutes 15] [--mean-seconds 60] [--seed N] [--json FILE]

Two ranks under `isthmus launch`. A short run is timed first, to choose a number of steps that takes about so long with
the kills; then comes the run with them (a random rank by SIGKILL, after exponential times), then the quiet one.
Compared are parameters and optimizer state, the loss of every step, the samples (`isthmus data audit`), and the goodput
of the ledger with `replay_goodput` at the times of the kills, whose four constants come from the same run.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from launched import Launched, newest_checkpoint, read_rows
from safetensors import safe_open

from isthmus.fault_tolerance.interval import expected_goodput, replay_goodput
from isthmus.fault_tolerance.ledger import summarize

RUN = [
    *("model=nano", "train.global_batch=8", "train.sequence_length=128", "train.micro_batch=4"),
    *("log.tensorboard=false", "data.log_samples=true", "restart.without_progress=50", "eval.every_steps=0"),
    "schedule=constant",
]
EXPECTED_GOODPUT = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--mean-seconds", type=float, default=60.0)
    parser.add_argument("--every-seconds", type=float, default=8.0, help="between saves")
    parser.add_argument("--steps", type=int, help="instead of minutes, saved sixteen times: a rehearsal")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="isthmus-soak-") as folder:
        result = soak(Path(folder), options)
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    failed = [name for name, good in result.items() if good is False]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def soak(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    cache = f"data.cache_dir={root}/cache"
    if options.steps:
        steps, every = options.steps, max(1, options.steps // 16)
    else:
        seconds = step_seconds(root / "calibration", cache)
        steps = max(50, int(options.minutes * 60 * EXPECTED_GOODPUT / seconds))
        every = max(1, round(options.every_seconds / seconds))
    words = [*RUN, cache, f"train.steps={steps}", f"checkpoint.every_steps={every}"]
    print(f"{steps} steps, saved every {every}", flush=True)

    chooser = random.Random(options.seed)
    run = Launched(root / "killed", words)
    kills: list[float] = []
    try:
        next_kill = time.time() + chooser.expovariate(1 / options.mean_seconds)
        while run.process.poll() is None:
            time.sleep(0.05)
            if time.time() >= next_kill:
                if (when := run.kill_one(chooser)) is not None:
                    kills.append(when)
                    print(f"{when - run.began:.1f} s: killed a rank at step {run.last_step()}", flush=True)
                next_kill = time.time() + chooser.expovariate(1 / options.mean_seconds)
        code = run.finish(60)
        assert code == 0, (code, run.errors[-5:])
        took = time.time() - run.began
    finally:
        run.stop()
    quiet = Launched(root / "quiet", words)
    try:
        assert quiet.finish(3600) == 0, quiet.errors[-5:]
    finally:
        quiet.stop()
    command = [sys.executable, "-m", "isthmus.launch.cli", "data", "audit", str(run.folder), "--json"]
    audit = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    return {
        "seed": options.seed,
        "seconds": round(took, 1),
        "steps": steps,
        "kills": len(kills),
        "attempts": sum(row["what"] == "begin" for row in run.rows()),
        "numbers that differ from the quiet run": differing_numbers(run.folder, quiet.folder),
        "final state equal to the last bit": differing_numbers(run.folder, quiet.folder) == 0,
        "losses equal": losses(run.folder) == losses(quiet.folder),
        "samples": audit["samples"],
        "samples lost": sum(last - first for first, last in audit["missing"]),
        "samples repeated": sum(last - first for first, last in audit["repeated"]),
        "each sample consumed once": bool(audit["clean"]) and audit["samples"] == 8 * steps,
        **compare_goodput(run, kills, every, options.mean_seconds),
    }


def step_seconds(root: Path, cache: str) -> float:
    """Return the median time between steps of a short run without saves."""
    run = Launched(root, [*RUN, cache, "train.steps=60", "checkpoint.every_steps=0"])
    try:
        assert run.finish(600) == 0, run.errors[-5:]
    finally:
        run.stop()
    times = [row["time"] for row in run.rows() if row["what"] == "step"][10:]
    return (times[-1] - times[0]) / (len(times) - 1)


def compare_goodput(run: Launched, kills: list[float], every: int, mean_seconds: float) -> dict[str, Any]:
    """Return the ledger's goodput beside the replay's, and the constants of the replay."""
    rows = run.rows()
    totals = summarize(rows)
    steps = [row for row in rows if row["what"] == "step"]
    begins = [row for row in rows if row["what"] == "begin"]
    useful = statistics.mean(sum(row.get(cause, 0.0) for cause in ("data", "compute", "sync")) for row in steps)
    # What a step costs beside, booked as other, lengthens the interval as a save does.
    beside = statistics.mean(row.get("other", 0.0) for row in steps)
    saves = [row.get("checkpoint", 0.0) for row in steps if row["step"] % every == 0]
    stall = statistics.mean(saves) + every * beside
    restarts = [
        next((row["time"] for row in begins if row["time"] > when), when) - when
        for when, following in zip(kills, [*kills[1:], float("inf")], strict=True)
        if any(when < row["time"] < following for row in begins)
    ]
    start = begins[0]["started"]
    restart = statistics.mean(restarts) if restarts else begins[0]["init"]
    constants = {
        "interval_seconds": every * useful,
        "stall_seconds": stall,
        "durable_seconds": durable_seconds(run.folder),
        "restart_seconds": restart,
    }
    replayed = replay_goodput([when - start for when in kills], totals["elapsed"], **constants)
    expected = expected_goodput(every * useful, stall, mean_seconds, restart)
    return {
        "goodput of the ledger": round(totals["goodput"], 4),
        "goodput of the replay": round(replayed, 4),
        "goodput expected of random kills (Daly)": round(expected, 4),
        "within 3 points": abs(totals["goodput"] - replayed) <= 0.03,
        **{name: round(value, 3) for name, value in constants.items()},
        "restarts, seconds": [round(value, 2) for value in restarts],
        "booked": {name: round(value, 1) for name, value in totals.items() if value >= 0.05},
    }


def durable_seconds(folder: Path) -> float:
    """Return how long the saves that are still there took, from their beginning until their manifest was there."""
    spans = []
    for manifest in folder.glob("checkpoints/step-*/manifest.json"):
        spans.append(manifest.stat().st_mtime - json.loads(manifest.read_text())["saved_at"])
    return statistics.mean(spans)


def differing_numbers(one: Path, other: Path) -> int:
    """Return how many parameters and moments differ in any bit between the newest checkpoints of two runs."""
    different = 0
    left, right = newest_checkpoint(one), newest_checkpoint(other)
    for path in sorted(left.glob("*.safetensors")):
        with safe_open(path, framework="pt") as ours, safe_open(right / path.name, framework="pt") as theirs:
            names = {name for name in ours.keys() if not name.startswith("state/")}  # noqa: SIM118
            assert names == {name for name in theirs.keys() if not name.startswith("state/")}  # noqa: SIM118
            for name in names:
                a, b = ours.get_tensor(name), theirs.get_tensor(name)
                different += int((a.view(torch.uint8) != b.view(torch.uint8)).sum())
    return different


def losses(folder: Path) -> dict[int, float]:
    """Return the loss of each step, of the last attempt that made it."""
    return {row["step"]: row["loss"] for row in read_rows(folder / "metrics.jsonl")}


if __name__ == "__main__":
    main()
