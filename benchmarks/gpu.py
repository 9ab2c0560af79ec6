"""Tokens per second and MFU on one GPU, beside a plain PyTorch loop with compiled layers and SDPA.

    python benchmarks/gpu.py [--models 124m 1b] [--sequence 2048] [--micro-batch 8] [--out FILE]

Both contenders take turns in one process on the same random tokens, in bf16; times are wall-clock between device
synchronisations, medians over the rounds. isthmus keeps fp32 main parameters and gradients, the plain loop does not.
"""

import argparse
import datetime
import json
import logging
import statistics
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", module=r"megatron\.")
logging.getLogger("megatron").setLevel(logging.ERROR)

import torch
from contenders import Step, ours, plain, random_batches

from isthmus.config import compose
from isthmus.parallelism.config import Precision
from isthmus.parallelism.flops import model_flops_per_token
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.machine import has_transformer_engine
from isthmus.parallelism.topology import build_topology
from isthmus.train.config import Config
from isthmus.train.hardware import peak_flops


def seconds_per_step(step: Step, config: Config, steps: int, generator: torch.Generator) -> float:
    batches = random_batches(config, steps, generator)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for batch in batches:
        step(batch)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["124m", "1b"])
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    peak = peak_flops(Precision.bf16)
    results: dict[str, object] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformer_engine": has_transformer_engine(),
    }
    for model in options.models:
        batch = options.micro_batch
        shape = [
            f"train.micro_batch={batch}",
            f"train.global_batch={batch}",
            f"train.sequence_length={options.sequence}",
        ]
        config = compose(Config, "train", [f"model={model}", *shape, "train.steps=1"])
        flops = model_flops_per_token(config.model, options.sequence)
        tokens = batch * options.sequence
        generator = torch.Generator().manual_seed(1)
        topology = build_topology(config.parallel, 1)
        with site_groups(topology, rank=0, timeout=datetime.timedelta(minutes=10)) as groups:
            steps = {"isthmus": ours(config, groups, Precision.bf16), "plain": plain(config, Precision.bf16, True)}
            rates: dict[str, list[float]] = {name: [] for name in steps}
            for turn in range(options.rounds + 1):
                for name, step in steps.items():
                    seconds = seconds_per_step(step, config, options.steps, generator)
                    if turn:  # the first round warms up, and compiles
                        rates[name].append(tokens / seconds)
        for name, figures in rates.items():
            rate = statistics.median(figures)
            mfu = f"  MFU {rate * flops / peak:.3f}" if peak else ""
            ratio = statistics.median(a / b for a, b in zip(figures, rates["plain"], strict=True))
            print(f"{model} {name:<8} {rate:10.0f} tokens/s{mfu}  {ratio:.3f}x plain", flush=True)
        results[model] = rates
        del steps
        torch.cuda.empty_cache()
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
