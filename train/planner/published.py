"""Published runs as shapes and layouts, and how the model does on them: nothing here is fitted point by point."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isthmus.errors import UserError
from isthmus.train.planner.accelerators import A100
from isthmus.train.planner.cluster import Cluster, Site
from isthmus.train.planner.constants import A100_CONSTANTS, Constants
from isthmus.train.planner.layout import Layout
from isthmus.train.planner.predict import predict
from isthmus.train.planner.shape import Shape, gpt


@dataclass(frozen=True, kw_only=True)
class Case:
    """A published figure and the run that it is of."""

    name: str
    shape: Shape
    layout: Layout
    measured: float  # seconds of an iteration

    @property
    def accelerators(self) -> int:
        return self.layout.ranks

    @property
    def split(self) -> tuple[int, int, int]:
        return self.layout.tensor, self.layout.data, self.layout.pipeline


def predicted_seconds(case: Case, constants: Constants = A100_CONSTANTS) -> float:
    site = Site(name="main", accelerator=A100, count=case.accelerators, constants=constants)
    return predict(case.shape, case.layout, Cluster(sites=[site])).step_seconds


def errors(cases: Sequence[Case], constants: Constants = A100_CONSTANTS) -> list[float]:
    """Return predicted / measured - 1 of each."""
    return [predicted_seconds(case, constants) / case.measured - 1 for case in cases]


def single_node_cases(path: Path) -> list[Case]:
    """Read the 1,440 iterations on one node of A100 (vTrain, arXiv 2312.12391).

    What the file does not say is the same for all rows, and was read off the training half: no recomputation (model
    FLOP/s would pass 60% of the peak), fp16 gradients reduced after the backward pass without a distributed optimizer
    (the seconds that do not grow with the batch), softmax and dropout not fused (what is left between h = 1024 and
    h = 2048 at equal numbers of scores).
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[1:]
    cases = []
    for row in rows:
        _, batch, micro, hidden, heads, layers, sequence, tensor, data, pipeline = (int(value) for value in row[:10])
        layout = Layout(
            tensor=tensor,
            data=data,
            pipeline=pipeline,
            global_batch=batch,
            micro_batch=micro,
            sequence_length=sequence,
            attention="core",
            fused=False,
            gradient_bytes=2,
            distributed_optimizer=False,
            overlap=False,
        )
        shape = gpt(layers=layers, hidden=hidden, heads=heads, sequence=sequence)
        cases.append(Case(name=" ".join(row[:10]), shape=shape, layout=layout, measured=float(row[10]) / 1e3))
    return cases


def split_by_layout(cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Return (train, test): the layouts (tensor, data, pipeline) in order, every second one to the test half."""
    layouts = sorted({case.split for case in cases})
    train = set(layouts[::2])
    return [case for case in cases if case.split in train], [case for case in cases if case.split not in train]


def megatron_cases(table: dict[str, Any]) -> list[Case]:
    """Return SC'21 table 1 (arXiv 2104.04473). The paper prints no microbatch and no number of chunks: those that the
    model finds fastest among 1, 2, 4, 8 and what divides the layers are taken, for every row by the same rule."""
    cases = []
    for _, heads, hidden, layers, tensor, pipeline, gpus, batch, tflops, *_ in table["rows"]:
        shape = gpt(layers=int(layers), hidden=int(hidden), heads=int(heads))
        data = int(gpus // (tensor * pipeline))
        flops = full_recompute_flops(shape, int(batch), 2048)
        seconds = flops / (tflops * 1e12 * gpus)
        best: Case | None = None
        for micro in (1, 2, 4, 8):
            for chunks in (1, 2, 3, 4, 5):
                layout = Layout(
                    tensor=int(tensor),
                    pipeline=int(pipeline),
                    virtual_pipeline=chunks,
                    data=data,
                    global_batch=int(batch),
                    micro_batch=micro,
                    recompute="full",
                    attention="core",
                    distributed_optimizer=False,
                    overlap=False,
                )
                case = Case(name=f"{shape.params / 1e9:.1f}B", shape=shape, layout=layout, measured=seconds)
                try:
                    faster = best is None or predicted_seconds(case) < predicted_seconds(best)
                except UserError:
                    continue  # does not divide
                if faster:
                    best = case
        assert best is not None
        cases.append(best)
    return cases


def full_recompute_flops(shape: Shape, batch: int, sequence: int) -> float:
    """Return 96 B s l h^2 (1 + s/(6h) + V/(16 l h)) (arXiv 2104.04473, equation 3)."""
    h, l = shape.hidden, shape.layers  # noqa: E741
    return 96.0 * batch * sequence * l * h**2 * (1 + sequence / (6 * h) + shape.vocabulary / (16 * l * h))


def korthikanti_cases(table: dict[str, Any]) -> list[Case]:
    """Return table 5 of arXiv 2205.05198, twice a row: full recomputation, and sequence parallel with selective.

    Microbatches are those of its table 3: 4 for 22B, else 1.
    """
    cases = []
    for name, layers, hidden, heads, tensor, pipeline, chunks, batch, _, full, selective in table["rows"]:
        shape = gpt(layers=layers, hidden=hidden, heads=heads)
        layout = Layout(
            tensor=tensor,
            pipeline=pipeline,
            virtual_pipeline=chunks,
            data=1,
            global_batch=batch,
            micro_batch=4 if name == "22B" else 1,
            recompute="full",
            attention="core",
            distributed_optimizer=False,
            overlap=False,
        )
        cases.append(Case(name=f"{name} full", shape=shape, layout=layout, measured=full))
        leaner = replace(layout, recompute="selective", sequence=True)
        cases.append(Case(name=f"{name} selective", shape=shape, layout=leaner, measured=selective))
    return cases


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile of absolute values, by linear interpolation."""
    ordered = sorted(abs(value) for value in values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
