"""Train `nano` on random tokens with the real engine, as one rank of a site, and bring back everything by address."""

import datetime
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from isthmus.config import compose
from isthmus.parallelism.engine import OwnedSlice
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.slices import Slice
from isthmus.parallelism.topology import Topology, build_topology, validate_batch, validate_layout, validate_model
from isthmus.train.assembly import build_engine
from isthmus.train.config import Config
from support.ranks import RankWorld

GLOBAL_BATCH, SEQUENCE_LENGTH = 8, 64

Owned = list[tuple[Slice, NDArray[np.float32]]]


@dataclass(frozen=True)
class Batch:
    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    mask_BS: torch.Tensor


@dataclass
class Trajectory:
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    first_gradients: Owned = field(default_factory=list)
    parameters: Owned = field(default_factory=list)


def compose_nano(*overrides: str) -> Config:
    common = [
        f"train.global_batch={GLOBAL_BATCH}",
        f"train.sequence_length={SEQUENCE_LENGTH}",
        "train.micro_batch=2",
        "train.steps=20",
        "optim.learning_rate=3e-3",
        # Small enough that every stage has several buckets.
        "parallel.bucket_parameters=100000",
    ]
    return compose(Config, "train", [*common, *overrides])


def topology_of(config: Config, world: RankWorld) -> Topology:
    topology = build_topology(config.parallel, world.size)
    validate_model(config.model)
    validate_layout(config.model, config.parallel, config.train.sequence_length)
    validate_batch(topology, config.train.global_batch, config.train.micro_batch)
    return topology


def rank_batches(
    config: Config, topology: Topology, rank: int, step: int, *, site: int = 0, sites: int = 1
) -> list[Batch]:
    """Return this data-parallel rank's microbatches of a global batch that depends on the step only."""
    generator = torch.Generator().manual_seed(1000 + step)
    length = config.train.sequence_length
    # A skewed, predictable stream, so that there is something to learn.
    noise = torch.randint(0, 7, (config.train.global_batch, length + 1), generator=generator)
    tokens = (noise.cumsum(1) * 3) % 257
    share = config.train.global_batch // (topology.data * sites)
    first = (site * topology.data + topology.data_rank(rank)) * share
    mine = tokens[first : first + share]
    mask = torch.ones(share, length)
    mask[:, ::5] = 0.0  # so that ranks agree on the number of tokens only if they count
    return [
        Batch(part[:, :-1].contiguous(), part[:, 1:].contiguous(), masked)
        for part, masked in zip(mine.split(config.train.micro_batch), mask.split(config.train.micro_batch), strict=True)
    ]


def snapshot(owned: list[OwnedSlice], what: str, scale: float = 1.0) -> Owned:
    return [(entry.slice, (getattr(entry, what) * scale).numpy().copy()) for entry in owned]


def train_nano(world: RankWorld, steps: int, overrides: list[str]) -> Trajectory:
    """Rank function: train for some steps and return what happened."""
    config = compose_nano(*overrides)
    topology = topology_of(config, world)
    timeout = datetime.timedelta(seconds=300)
    trajectory = Trajectory()
    with site_groups(topology, rank=world.rank, timeout=timeout, init_method=world.init_method) as groups:
        engine = build_engine(config, groups)
        for step in range(steps):
            loss = engine.forward_backward(rank_batches(config, topology, world.rank, step))
            trajectory.losses.append(loss.mean)
            trajectory.grad_norms.append(engine.gradient_norm(loss.tokens))
            if step == 0:
                trajectory.first_gradients = snapshot(list(engine.owned()), "gradient", 1 / loss.tokens)
            engine.step(config.optim.learning_rate)
        trajectory.parameters = snapshot(list(engine.owned()), "parameter")
    return trajectory


def assemble(ranks: list[Owned]) -> dict[str, NDArray[np.float32]]:
    """Put the slices of all ranks together into whole tensors.

    Raises:
        AssertionError: a number that no rank owns, or copies that differ in a single bit.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    covered: dict[str, NDArray[np.bool_]] = {}
    for owned in ranks:
        for where, values in owned:
            whole = tensors.setdefault(where.name, np.zeros(where.global_shape, np.float32))
            seen = covered.setdefault(where.name, np.zeros(where.global_shape, bool))
            window = tuple(slice(o, o + s) for o, s in zip(where.offset, where.shape, strict=True))
            flat, mask = whole[window].reshape(-1), seen[window].reshape(-1)
            part = slice(where.start, where.stop)
            copies = mask[part]
            assert np.array_equal(flat[part][copies], values[copies]), f"copies of {where.name} differ"
            flat[part], mask[part] = values, True
            whole[window], seen[window] = flat.reshape(where.shape), mask.reshape(where.shape)
    for name, seen in covered.items():
        assert seen.all(), f"{(~seen).sum()} numbers of {name} are owned by no rank"
    return tensors
