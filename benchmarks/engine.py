"""Tokens per CPU second of a whole training step, beside a plain PyTorch loop and Megatron's own local layers.

    python benchmarks/engine.py [--rounds 7] [--steps 4] [--compile] [--out FILE]

All contenders train the same 11M-parameter model (`model=tiny`) on the same random tokens, each in a process of its own
on one thread, in turn; the ratio is taken round by round and its median reported, since the machine's speed drifts. A
step is forward, backward, clipping, AdamW and reading the loss.
"""

import argparse
import datetime
import json
import logging
import multiprocessing
import platform
import statistics
import time
import warnings
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

warnings.filterwarnings("ignore", module=r"megatron\.")
logging.getLogger("megatron").setLevel(logging.ERROR)

import torch
from contenders import megatron_local, ours, plain, random_batches

from isthmus.config import compose
from isthmus.parallelism.config import Precision
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.topology import build_topology
from isthmus.train.config import Config

SETTINGS = ["model=tiny", "train.micro_batch=4", "train.global_batch=4", "train.sequence_length=256"]
TOKENS = 4 * 256  # per step


def contender(name: str, precision: Precision, pipe: Connection) -> None:
    """Body of a contender's process: run as many steps as told, answer with the CPU seconds that they took."""
    torch.set_num_threads(1)
    config = compose(Config, "train", [*SETTINGS, "train.steps=1"])
    topology = build_topology(config.parallel, 1)
    generator = torch.Generator().manual_seed(1)
    with ExitStack() as stack:
        if name.startswith("plain"):
            step = plain(config, precision, "compiled" in name)
        else:
            timeout = datetime.timedelta(minutes=1)
            groups = stack.enter_context(site_groups(topology, rank=0, timeout=timeout))
            build = megatron_local if name == "megatron-local" else ours
            step = build(config, groups, precision)
        while steps := pipe.recv():
            batches = random_batches(config, steps, generator)
            started = time.process_time()
            for batch in batches:
                step(batch)
            pipe.send(time.process_time() - started)


def measure(names: list[str], precision: Precision, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return tokens per CPU second, a figure a round; each contender is a process of its own, and they take turns."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        context.Process(target=contender, args=(name, precision, theirs), daemon=True).start()
        theirs.close()  # so that a contender that dies is an EOFError here, not a wait for ever
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names if turn % 2 else reversed(names):
            # The first round warms up, and compiles.
            pipes[name].send(steps if turn else 3)
            seconds = pipes[name].recv()
            if turn:
                rates[name].append(steps * TOKENS / seconds)
    for pipe in pipes.values():
        pipe.send(0)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="add the plain loop with compiled layers")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = ["isthmus", "plain", "megatron-local"]
    if options.compile:
        names.append("plain-compiled")
    results: dict[str, object] = {"torch": torch.__version__, "machine": platform.machine()}
    for precision in options.precisions:
        rates = measure(names, Precision[precision], options.rounds, options.steps)
        print(f"{precision}: tokens per CPU second (median of {options.rounds} rounds); median ratio to each peer")
        for name, figures in rates.items():
            ratios = "  ".join(
                f"{statistics.median(a / b for a, b in zip(figures, rates[peer], strict=True)):.3f}x {peer}"
                for peer in ("plain", "megatron-local")
            )
            print(f"  {name:<18} {statistics.median(figures):7.0f}   {ratios}")
        results[precision] = rates
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
