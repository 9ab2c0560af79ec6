"""Predicted beside measured: step time and utilisation of runs in the WAN lab, by method, bandwidth and H.

    python benchmarks/planner_lab.py [--profile FILE] [--only N,N] [--model nano] [--out FILE]

Calibrates this machine first (products, memory, a step of two silent sites, the lab's link), then runs 12
configurations of `isthmus lab` and predicts each from the profile alone: no figure of a run is used for another. A
shared machine's speed drifts, so the step of silent sites is measured anew before and after every run, and the profile
refitted to their mean; what a link carries is measured once for each bandwidth, as preflight does. Prints a row each
and the median errors. Takes a quarter of an hour; wants the machine for itself.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from isthmus.config import compose
from isthmus.launch.plan.calibrate import fit_step
from isthmus.launch.probe.link import lab_link
from isthmus.launch.probe.step import lab_step_seconds
from isthmus.train.planner.accelerators import CPU
from isthmus.train.planner.cluster import Cluster, Link, Site
from isthmus.train.planner.config import PlanRunConfig
from isthmus.train.planner.constants import constants_of
from isthmus.train.planner.predict import predict
from isthmus.train.planner.resolve import layout_of, read_profile, shape_of_config, sync_of

_RTT_MS = 20.0
_BATCH = ["train.global_batch=16", "train.micro_batch=8", "train.sequence_length=128", "train.precision=fp32"]
_DILOCO = ["sync=local", "sync.fragments=1", "sync.overlap_steps=0", "sync.merge=0"]
_STREAMING = ["sync=local", "sync.merge=0.5"]
# (bandwidth in Mbit/s, steps, overrides)
CONFIGURATIONS: list[tuple[float, int, list[str]]] = [
    (20, 16, ["sync=exact", "sync.wire=fp32"]),
    (100, 24, ["sync=exact", "sync.wire=fp32"]),
    (300, 30, ["sync=exact", "sync.wire=fp32"]),
    (20, 24, ["sync=exact", "sync.wire=int8"]),
    (100, 30, ["sync=exact", "sync.wire=bf16"]),
    (20, 41, [*_DILOCO, "sync.every=5", "sync.wire=fp32"]),
    (100, 41, [*_DILOCO, "sync.every=5", "sync.wire=fp32"]),
    (20, 61, [*_DILOCO, "sync.every=20", "sync.wire=fp32"]),
    (20, 41, [*_DILOCO, "sync.every=10", "sync.wire=int8"]),
    (20, 61, [*_STREAMING, "sync.every=10", "sync.fragments=2", "sync.overlap_steps=2", "sync.wire=fp32"]),
    (5, 61, [*_STREAMING, "sync.every=20", "sync.fragments=4", "sync.overlap_steps=4", "sync.wire=int8"]),
    (5, 61, [*_STREAMING, "sync.every=10", "sync.fragments=4", "sync.overlap_steps=2", "sync.wire=int4"]),
]


def measured(words: list[str], bandwidth: float, steps: int) -> dict[str, Any]:
    """Return the totals of a lab run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "isthmus.launch.cli", "lab", "--json", *words, f"train.steps={steps}"]
        shape = [f"lab.bandwidth_mbps={bandwidth}", f"lab.rtt_ms={_RTT_MS}", "lab.sites=2", f"run.dir={folder}"]
        # Sites compare their parameters at the end, and so wait for each other before they part.
        more = ["log.tensorboard=false", "train.threads=1"]
        result = subprocess.run([*command, *shape, *more], capture_output=True, text=True)
        if result.returncode:
            sys.exit("the lab failed:\n" + "\n".join(result.stderr.strip().splitlines()[-6:]))
        return dict(json.loads(result.stdout)["total"])


def predicted(
    words: list[str], bandwidth: float, profile: Path, silent_step: float, carried: dict[str, float]
) -> tuple[float, float]:
    """Return (seconds of a step, utilisation), where a step of silent sites takes so long and a link carries so much.

    Args:
        carried: what `lab_link` returned for this bandwidth.
    """
    config = compose(PlanRunConfig, "plan", words)
    sheet, constants = read_profile(profile, CPU, constants_of(CPU))
    alone = compose(PlanRunConfig, "plan", [*words[: 1 + len(_BATCH)], "train.global_batch=8"])
    constants = fit_step(alone, shape_of_config(alone), sheet, constants, silent_step)
    constants = replace(constants, wan_efficiency=carried["efficiency"], wan_round_seconds=carried["round_seconds"])
    sites = [Site(name=name, accelerator=sheet, count=1, constants=constants) for name in ("site1", "site2")]
    link = Link(ends=("site1", "site2"), bytes_per_second=bandwidth * 1e6 / 8, rtt_seconds=_RTT_MS / 1e3)
    cluster = Cluster(sites=sites, links=[link])
    prediction = predict(shape_of_config(config), layout_of(config, cluster), cluster, sync_of(config.sync))
    # Two processes on two cores: the calibration's copies have waited for each other already.
    straggler = prediction.parts["straggler"]
    step = prediction.step_seconds - straggler
    return step, 1 - prediction.exposed_seconds / step


def silent_step(model: str) -> float:
    return lab_step_seconds([f"model={model}", *_BATCH, "train.threads=1"])


def calibrated(model: str, folder: Path) -> Path:
    path = folder / "profile.json"
    # A site's share of the batch, as each copy of the probe trains it.
    words = [f"model={model}", *_BATCH, "train.global_batch=8", "train.threads=1"]
    command = [sys.executable, "-m", "isthmus.launch.cli", "plan", "calibrate", "--out", str(path), "--ranks=2"]
    subprocess.run([*command, f"--link=50,{_RTT_MS}", *words], check=True)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", type=Path, help="of isthmus plan calibrate, instead of a new one")
    parser.add_argument("--only", help="numbers of the configurations to run, from 1")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = [int(number) - 1 for number in options.only.split(",")] if options.only else range(len(CONFIGURATIONS))
    rows = []
    after = 0.0  # seconds of a silent step after the last run, and so before the next
    carried: dict[float, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        profile = options.profile or calibrated(options.model, Path(folder))
        for number in chosen:
            bandwidth, steps, method = CONFIGURATIONS[number]
            words = [f"model={options.model}", *_BATCH, *method]
            before = after if rows else silent_step(options.model)
            total = measured(words, bandwidth, steps)
            after = silent_step(options.model)
            if bandwidth not in carried:
                carried[bandwidth] = lab_link(bandwidth_mbps=bandwidth, rtt_ms=_RTT_MS)
            today = (before + after) / 2
            step, utilisation = predicted(words, bandwidth, profile, today, carried[bandwidth])
            row = {
                "configuration": " ".join(method),
                "bandwidth_mbps": bandwidth,
                "silent_step_seconds": [before, after],
                "predicted_step_seconds": step,
                "measured_step_seconds": total["step_seconds"],
                "step_error": step / total["step_seconds"] - 1,
                "predicted_utilisation": utilisation,
                "measured_utilisation": total["utilisation"],
                "utilisation_error": utilisation / total["utilisation"] - 1,
            }
            rows.append(row)
            print(
                f"{number + 1:2d}. {row['configuration']} at {bandwidth:g} Mbit/s: step {step:.3f} s predicted, "
                f"{row['measured_step_seconds']:.3f} measured ({row['step_error']:+.1%}); utilisation "
                f"{utilisation:.1%}, {row['measured_utilisation']:.1%} ({row['utilisation_error']:+.1%})",
                flush=True,
            )
        machine = json.loads(profile.read_text())
    summary = {name: statistics.median(abs(row[f"{name}_error"]) for row in rows) for name in ("step", "utilisation")}
    print(f"median errors: step {summary['step']:.1%}, utilisation {summary['utilisation']:.1%}")
    if options.out:
        result = {
            "machine": machine["machine"],
            "median_errors": summary,
            "runs": rows,
            "carried": carried,
            "profile": machine,
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
