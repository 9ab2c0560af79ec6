"""How far the planner is off: every published iteration, prediction and error, and the tables of the guide.

    python benchmarks/planner.py [--data ../shared/planner] [--out benchmarks/results/planner.json]
                                 [--docs docs/planner-accuracy.md] [--fit] [--bootstrap]

Prints medians, 90th percentiles and the worst points; with --docs writes the table of all of them. --fit prints the
constants that train/planner/constants.py should hold, --bootstrap those of train/planner/samples.py.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isthmus.train.planner import published
from isthmus.train.planner.accelerators import H100
from isthmus.train.planner.calibration import fit_constants
from isthmus.train.planner.cluster import Cluster, Link, Site
from isthmus.train.planner.constants import A100_CONSTANTS
from isthmus.train.planner.crossing import needed_bytes_per_second
from isthmus.train.planner.fit import bootstrap, fit, read_points, without_highest
from isthmus.train.planner.laws import BESIROGLU
from isthmus.train.planner.layout import Sync
from isthmus.train.planner.published import Case, predicted_seconds, quantile
from isthmus.train.planner.question import Question
from isthmus.train.planner.search import search

_DATA = Path(__file__).parents[2] / "shared/planner"
# Compute seconds of a step by parameters, as in the simulations of Streaming DiLoCo (arXiv 2501.18512, section 3.4).
_STEP_SECONDS = {1e9: 0.1, 10e9: 0.8, 100e9: 4.9}
_EVERY = (1, 10, 30, 50, 100, 300, 500)
_LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)


def accuracy(cases: Sequence[Case]) -> dict[str, float]:
    missed = published.errors(cases)
    return {
        "points": len(cases),
        "median": quantile(missed, 0.5),
        "p90": quantile(missed, 0.9),
        "worst": max(abs(error) for error in missed),
        "bias": statistics.median(missed),
    }


def bandwidth_rows() -> list[dict[str, Any]]:
    """Return the link speed in Gbit/s that each method needs for each utilisation.

    Two sites, one link, bf16 gradients (data parallel), fp32 pseudo-gradients at once (DiLoCo), 4-bit ones in four
    fragments with five steps of overlap (streaming).
    """
    rows = []
    for params, step_seconds in _STEP_SECONDS.items():
        for every in _EVERY:
            methods = (
                {"data parallel": Sync(kind="exact", wire="bf16")}
                if every == 1
                else {
                    "DiLoCo": Sync(kind="local", wire="fp32", every=every),
                    "streaming": Sync(kind="local", wire="int4", every=every, fragments=4, overlap_steps=5),
                }
            )
            for name, sync in methods.items():
                needed = [needed_bytes_per_second(params, step_seconds, sync, level) * 8 / 1e9 for level in _LEVELS]
                rows.append({"params": params, "every": every, "method": name, "gbps": needed})
    return rows


def large_plan_seconds() -> float:
    """Return the seconds of a plan for 1e26 FLOPs over 8 sites with 10 links."""
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 0), (0, 4), (2, 6)]
    sites = [Site(name=f"site{i}", accelerator=H100, count=16_384 if i < 5 else 8192) for i in range(8)]
    links = [Link(ends=(f"site{a}", f"site{b}"), bytes_per_second=50e9, rtt_seconds=0.03) for a, b in pairs]
    started = time.process_time()
    search(Question(law=BESIROGLU, flops=1e26, unique_tokens={}), Cluster(sites=sites, links=links))
    return time.process_time() - started


def _point_lines(cases: Sequence[Case]) -> list[str]:
    lines = []
    for case in cases:
        predicted = predicted_seconds(case)
        layout = case.layout
        shape = f"{case.shape.layers} x {case.shape.hidden}"
        split = f"{layout.tensor} x {layout.pipeline} x {layout.data}"
        chunks = f" v{layout.virtual_pipeline}" if layout.virtual_pipeline > 1 else ""
        columns = (
            shape,
            split + chunks,
            f"{layout.global_batch} / {layout.micro_batch}",
            f"{case.measured:.4g}",
            f"{predicted:.4g}",
            f"{predicted / case.measured - 1:+.1%}",
        )
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def _docs(groups: dict[str, list[Case]], figures: dict[str, dict[str, float]], bandwidth: list[dict[str, Any]]) -> str:
    lines = [
        "# How far the planner is off",
        "",
        "Written by `python benchmarks/planner.py --docs`: every published iteration that it is compared with, none",
        "left out. One set of constants for the A100, fitted to the training half; nothing is tuned by point. How",
        "they were fitted, and what the sources do not print, is in [planner.md](planner.md).",
        "",
        "| set | points | median | 90th percentile | worst | bias |",
        "|---|---|---|---|---|---|",
    ]
    for name, figure in figures.items():
        lines.append(
            f"| {name} | {figure['points']} | {figure['median']:.1%} | {figure['p90']:.1%} | {figure['worst']:.1%} | "
            f"{figure['bias']:+.1%} |"
        )
    lines += ["", "## Link speed for a utilisation", "", *_bandwidth_lines(bandwidth)]
    for name, cases in groups.items():
        lines += [
            "",
            f"## {name}",
            "",
            "| layers x width | tensor x pipeline x data | batch / microbatch | measured s | predicted s | error |",
            "|---|---|---|---|---|---|",
            *_point_lines(cases),
        ]
    return "\n".join(lines) + "\n"


def _bandwidth_lines(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Gbit/s each way between two sites that reach a utilisation of compute / (compute + exposed), for steps of",
        "0.1, 0.8 and 4.9 seconds of 1B, 10B and 100B parameters (arXiv 2501.18512, section 3.4); for a step of",
        "another length divide by it. Every parameter crosses the link once each way and round; no latency, headers",
        "or codecs. Data parallel sends bf16 gradients, of which the backward pass, two thirds of a step, hides what",
        "it can; DiLoCo sends fp32 pseudo-gradients and waits; streaming sends 4.125 bits a number in 4 fragments",
        "with 5 steps to arrive.",
        "",
        "| model | H | method | " + " | ".join(f"{level:.0%}" for level in _LEVELS) + " |",
        "|---|---|---|" + "---|" * len(_LEVELS),
    ]
    for row in rows:
        speeds = " | ".join(f"{speed:.3g}" for speed in row["gbps"])
        lines.append(f"| {row['params'] / 1e9:.0f}B | {row['every']} | {row['method']} | {speeds} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=_DATA)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--bootstrap", action="store_true")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"skipped: there are no published figures in {options.data}")
    tables = json.loads((options.data / "published.json").read_text())
    train, test = published.split_by_layout(
        published.single_node_cases(options.data / "iteration_times_single_node_a100.csv")
    )
    if options.bootstrap:
        points = without_highest(read_points(options.data / "chinchilla_points.csv"), 5)
        for sample in bootstrap(points, fit(points), 100, seed=1):
            print(f"    ({', '.join(f'{value:.6g}' for value in sample.constants)}),")
        return
    if options.fit:
        print(fit_constants(train, A100_CONSTANTS, source=A100_CONSTANTS.source))
        return
    groups = {
        "Megatron, SC'21, table 1 (A100, seconds from the printed TFLOP/s)": published.megatron_cases(
            tables["megatron_sc21_table1_A100"]
        ),
        "Korthikanti et al., table 5 (A100; each model with full and with selective recomputation)": (
            published.korthikanti_cases(tables["korthikanti_table5_iter_s"])
        ),
        "vTrain, one node of A100, test half": test,
        "vTrain, one node of A100, training half": train,
    }
    figures = {name: accuracy(cases) for name, cases in groups.items()}
    for name, figure in figures.items():
        print(
            f"{name}: {figure['points']} points, median {figure['median']:.1%}, 90th percentile {figure['p90']:.1%}, "
            f"worst {figure['worst']:.1%}, bias {figure['bias']:+.1%}"
        )
    bandwidth = bandwidth_rows()
    print("\n".join(_bandwidth_lines(bandwidth)))
    seconds = large_plan_seconds()
    print(f"a plan for 1e26 FLOPs over 8 sites with 10 links: {seconds:.1f} CPU s on one core")
    if options.out:
        result = {"accuracy": figures, "bandwidth": bandwidth, "large_plan_cpu_seconds": seconds}
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.docs:
        options.docs.write_text(_docs(groups, figures, bandwidth))


if __name__ == "__main__":
    main()
