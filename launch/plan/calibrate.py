"""`isthmus plan calibrate`: measure this machine and write a profile that the planner reads."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from isthmus.config import compose
from isthmus.errors import EXIT_OK, UserError
from isthmus.files import write_json
from isthmus.launch.words import Words
from isthmus.train.planner.accelerators import ACCELERATORS, CPU, Accelerator
from isthmus.train.planner.cluster import Cluster, Site
from isthmus.train.planner.config import PlanRunConfig
from isthmus.train.planner.constants import Constants, constants_of
from isthmus.train.planner.kernels import Device
from isthmus.train.planner.layout import Layout
from isthmus.train.planner.predict import predict
from isthmus.train.planner.shape import Shape, shape_of
from isthmus.units import format_bytes

_USAGE = """\
isthmus plan calibrate [--out FILE] [--ranks N] [--seconds S] [--link MBPS,RTT_MS] [--json] [KEY=VALUE] ...

Measure this machine: matrix products at the model's shapes, memory bandwidth, all-reduces among ranks, whole training
steps, and with --link what TCP carries over a link of the lab. KEY=VALUE chooses the model and the batch.
  --out FILE           where the profile goes, for cluster.sites.NAME.profile=FILE (profile.json)
  --ranks N            ranks that share this machine (CPU: 1 per core up to 2; GPU: all)
  --seconds S          for each matrix product (0.3)
  --link MBPS,RTT_MS   probe a link of the lab with this bandwidth and round trip, and take the steps from silent sites
                       of the lab; needs what isthmus lab needs
  --no-steps           leave out the training steps
"""
_READS = ("model.", "model=", "train.", "parallel.tensor=", "data", "optim")
_MATCHES = {"A100": "a100", "H100": "h100", "H200": "h200", "B200": "b200"}


def calibrate(words: list[str]) -> int:
    """Probe, fit and write the profile.

    Raises:
        UserError: the words are wrong, or a probe is not permitted here.
    """
    given = Words(
        words,
        verb="plan calibrate",
        flags=("--json", "--no-steps"),
        options=("--out", "--ranks", "--seconds", "--link"),
    )
    if given.help:
        print(_USAGE, end="")
        return EXIT_OK
    overrides = given.rest
    for word in overrides:
        if not word.startswith(_READS):
            raise UserError("would do nothing here", where=word, fix="choose the model and the batch: model.*, train.*")
    config = compose(PlanRunConfig, "plan", ["train.sequence_length=128", "train.precision=fp32", *overrides])
    link = _link(given.value("--link") or "")
    seconds = _number("--seconds", given.value("--seconds") or "0.3")
    ranks, as_json = given.value("--ranks"), given.flag("--json")
    console = Console(stderr=as_json, soft_wrap=True)
    profile = measure(
        config,
        overrides,
        ranks=int(_number("--ranks", ranks)) if ranks else None,
        seconds=seconds,
        link=link,
        steps=not given.flag("--no-steps"),
        console=console,
    )
    out = Path(given.value("--out") or "profile.json").expanduser()
    try:
        write_json(out, profile)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"--out={out}", fix="choose another") from None
    console.print(f"use it with: cluster.sites.NAME.profile={out}", highlight=False)
    if as_json:
        print(json.dumps({**profile, "file": str(out)}))
    return EXIT_OK


def measure(
    config: PlanRunConfig,
    overrides: Sequence[str],
    *,
    ranks: int | None,
    seconds: float,
    link: tuple[float, float] | None,
    steps: bool,
    console: Console,
) -> dict[str, Any]:
    """Return the profile: what was measured, and the data sheet's numbers and the constants that follow."""
    import torch  # late: a wrong word should not wait for it

    from isthmus.launch.probe import collectives, machine
    from isthmus.launch.probe.link import lab_link
    from isthmus.launch.probe.step import lab_step_seconds, step_seconds

    device = "cuda" if torch.cuda.is_available() and config.train.device.name != "cpu" else "cpu"
    ranks = ranks or (torch.cuda.device_count() if device == "cuda" else min(2, os.cpu_count() or 1))
    if device == "cpu":
        torch.set_num_threads(config.train.threads or max(1, (os.cpu_count() or 1) // ranks))
    name = machine.device_name(device)
    base = next((ACCELERATORS[key] for word, key in _MATCHES.items() if word in name), CPU)
    precision = config.train.precision.name
    shape = shape_of(config.model)
    console.print(f"{name}: {ranks} ranks of {torch.get_num_threads()} threads", highlight=False)

    found = machine.matmuls(_shapes(config, shape), device=device, precision=precision, seconds=seconds)
    best = max(entry["flops"] for entry in found)
    rate = machine.copy_bytes_per_second(device, seconds)
    console.print(f"best matrix product {best / 1e12:.3g} TFLOP/s, copy {format_bytes(rate)}/s", highlight=False)
    measured: dict[str, Any] = {"matmuls": found, "copy_bytes_per_second": rate}
    sheet = replace(base, memory_bytes=machine.memory_bytes(device, ranks))
    constants = constants_of(base)
    if base is CPU:
        sheet = replace(sheet, bf16_flops=best, fp8_flops=best, fp32_flops=best, memory_bytes_per_second=rate)
        sheet = replace(sheet, node_size=ranks)
        efficiency, fixed = cpu_matmul(found, best)
        constants = replace(constants, bandwidth_efficiency=1.0, matmul_efficiency=efficiency, tile_seconds=fixed)
    else:
        constants = replace(
            constants,
            bandwidth_efficiency=min(1.0, rate / sheet.memory_bytes_per_second),
            matmul_efficiency=gpu_matmul_efficiency(found, sheet, constants, precision),
        )
    if ranks > 1:
        ring = collectives.all_reduce(ranks, device)
        measured["all_reduce"] = ring
        told = f"all-reduce among {ranks}: {format_bytes(ring['bytes_per_second'])}/s"
        console.print(f"{told}, {ring['latency_seconds'] * 1e6:.0f} us a step", highlight=False)
        sheet = replace(sheet, link_bytes_per_second=ring["bytes_per_second"]) if base is CPU else sheet
        constants = replace(
            constants,
            link_efficiency=min(1.0, ring["bytes_per_second"] / sheet.link_bytes_per_second),
            link_latency=ring["latency_seconds"],
        )
    if link is not None:
        carried = lab_link(bandwidth_mbps=link[0], rtt_ms=link[1])
        measured["link"] = carried
        told = f"the lab's link carries {carried['payload_mbps']:.1f} of {link[0]:g} Mbit/s"
        console.print(f"{told}, round trip {carried['rtt_ms']:.1f} ms", highlight=False)
        constants = replace(constants, wan_efficiency=carried["efficiency"], wan_round_seconds=carried["round_seconds"])
    if steps:
        extra = [f"train.threads={torch.get_num_threads()}"] if device == "cpu" else []
        try:
            if link is not None and device == "cpu":
                # Sites of the lab share the processor with its relay.
                batch = [f"train.global_batch={config.train.global_batch * ranks}"]
                took = lab_step_seconds([*overrides, *extra, *batch], sites=ranks)
            else:
                took = step_seconds([*overrides, *extra], copies=ranks if device == "cpu" else 1)
        except RuntimeError as error:
            raise UserError(
                f"a training step failed: {error}", where="isthmus plan calibrate", fix="or use --no-steps"
            ) from None
        measured["step_seconds"] = took
        constants = fit_step(config, shape, sheet, constants, took)
        console.print(f"a step of {config.model.name} takes {took:.4g} s", highlight=False)
    return {
        "machine": name,
        "ranks": ranks,
        "threads": torch.get_num_threads(),
        "accelerator": _changed(sheet, base),
        "constants": _changed(constants, constants_of(base)),
        "measured": measured,
    }


def _shapes(config: PlanRunConfig, shape: Shape) -> list[tuple[int, int, int]]:
    """Return (m, n, k) of the model's products on a rank, forward and both gradients, and two squares for the peak."""
    tokens = config.train.micro_batch * config.train.sequence_length
    t = config.parallel.tensor
    qkv = (shape.attention_width + 2 * shape.kv_width) // t
    forward = [
        (tokens, qkv, shape.hidden),
        (tokens, shape.hidden, shape.attention_width // t),
        (tokens, 2 * shape.ffn // t, shape.hidden),
        (tokens, shape.hidden, shape.ffn // t),
        (tokens, shape.vocabulary // t, shape.hidden),
    ]
    gradients = [(m, k, n) for m, n, k in forward] + [(k, n, m) for m, n, k in forward]
    return [*forward, *gradients, (768, 768, 768), (1024, 1024, 1024)]


def cpu_matmul(found: Sequence[Mapping[str, float]], best: float) -> tuple[float, float]:
    """Return matmul_efficiency and tile_seconds: seconds = FLOPs / (efficiency x best) + fixed, least squares of the
    relative errors."""
    # Weighted by 1 / seconds: minimise sum of ((a f + b) / s - 1)^2.
    rows = [(entry["m"] * entry["n"] * entry["k"] * 2.0 / entry["seconds"], 1.0 / entry["seconds"]) for entry in found]
    ff = sum(f * f for f, _ in rows)
    fg = sum(f * g for f, g in rows)
    gg = sum(g * g for _, g in rows)
    f1, g1 = sum(f for f, _ in rows), sum(g for _, g in rows)
    determinant = ff * gg - fg * fg
    slope = (f1 * gg - g1 * fg) / determinant if determinant > 1e-9 * ff * gg else f1 / ff
    fixed = (g1 - slope * fg) / gg
    if fixed < 0 or slope <= 0:
        slope, fixed = f1 / ff, 0.0
    return min(1.0, 1.0 / (slope * best)), fixed


def gpu_matmul_efficiency(
    found: Sequence[Mapping[str, float]], sheet: Accelerator, constants: Constants, precision: str
) -> float:
    """Return the efficiency at which half of the measured products are predicted too slow, half too fast."""
    low, high = 0.05, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        device = Device(sheet, replace(constants, matmul_efficiency=middle), precision)
        slower = sum(device.matmul(e["m"], e["n"], e["k"]) > e["seconds"] for e in found)
        low, high = (middle, high) if slower > len(found) / 2 else (low, middle)
    return high


def fit_step(
    config: PlanRunConfig, shape: Shape, sheet: Accelerator, constants: Constants, seconds: float
) -> Constants:
    """Return the constants with which a measured step is predicted: kernels' fixed seconds, or memory's speed.

    On a CPU fixed seconds of kernels stand for all that is neither products nor memory. Where they would have to be
    negative, caches make memory faster than the copy: then its speed gives way.
    """
    train = config.train
    layout = Layout(
        global_batch=train.global_batch,
        micro_batch=train.micro_batch,
        sequence_length=train.sequence_length,
        precision=train.precision.name,
        tensor=1,
    )

    def predicted(tried: Constants) -> float:
        site = Site(name="main", accelerator=sheet, count=1, constants=tried)
        return predict(shape, layout, Cluster(sites=[site])).step_seconds

    name = "kernel_seconds" if sheet.kind == "cpu" else "op_seconds"
    if predicted(replace(constants, **{name: 0.0})) < seconds:  # type: ignore[arg-type]
        low, high = 1e-9, 1.0
        rising = True
    else:
        name, low, high, rising = "bandwidth_efficiency", 0.05, 50.0, False
        constants = (
            replace(constants, kernel_seconds=0.0) if sheet.kind == "cpu" else replace(constants, op_seconds=0.0)
        )
    for _ in range(60):
        middle = math.sqrt(low * high)
        too_slow = predicted(replace(constants, **{name: middle})) > seconds  # type: ignore[arg-type]
        low, high = (low, middle) if too_slow == rising else (middle, high)
    return replace(constants, **{name: high})  # type: ignore[arg-type]


def _changed(ours: Accelerator | Constants, base: Accelerator | Constants) -> dict[str, float]:
    names = [entry.name for entry in fields(ours) if entry.name not in ("source", "name", "kind")]
    return {name: getattr(ours, name) for name in names if getattr(ours, name) != getattr(base, name)}


def _link(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    parts = text.split(",")
    if len(parts) != 2:
        raise UserError(f"is {text!r}", where="--link", fix="give MBPS,RTT_MS as in --link 100,50")
    return _number("--link", parts[0]), _number("--link", parts[1])


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"is {text!r}", where=name, fix="give a positive number")
    return value
