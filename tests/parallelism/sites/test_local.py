"""Local sync against a reference in plain tensors."""

import re

import numpy as np
import pytest
import torch
from support.diloco import Recipe, Weights, nesterov, train_reference
from support.engines import assemble, compose_nano, rank_batches, topology_of
from support.ranks import RankWorld, run_ranks, run_sites
from support.sites import TIMEOUT, train_site

from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.sites.fragments import fragment_of
from isthmus.train.assembly import build_engine

# Small: AdamW turns rounding of a gradient near zero into a fraction of the learning rate.
LEARNING_RATE = 3e-4
COMMON = ["sync=local", "sync.wire=fp32", "train.micro_batch=2", f"optim.learning_rate={LEARNING_RATE}"]
METHODS = {
    # name: (H, P, tau, alpha, outer rate, outer momentum, steps)
    "Local SGD, H 1": (1, 1, 0, 0.0, 1.0, 0.0, 4),
    "Local SGD": (4, 1, 0, 0.0, 1.0, 0.0, 12),
    "DiLoCo": (4, 1, 0, 0.0, 0.7, 0.9, 12),
    "Streaming DiLoCo": (6, 3, 2, 0.5, 0.7, 0.9, 20),
}


def overrides(method: str) -> tuple[list[str], int]:
    every, fragments, overlap, merge, rate, momentum, steps = METHODS[method]
    keys = {
        "every": every,
        "fragments": fragments,
        "overlap_steps": overlap,
        "merge": merge,
        "outer_learning_rate": rate,
        "outer_momentum": momentum,
    }
    return [*COMMON, *(f"sync.{name}={value}" for name, value in keys.items())], steps


def _reference(world: RankWorld, method: str, sites: int) -> list[dict[str, np.ndarray]]:
    """Rank function of a single process: the engine gives gradients, all else is plain tensors."""
    every, fragments, overlap, merge, rate, momentum, steps = METHODS[method]
    config = compose_nano(f"optim.learning_rate={LEARNING_RATE}", "train.micro_batch=2")
    topology = topology_of(config, world)
    with site_groups(topology, rank=0, timeout=TIMEOUT, init_method=world.init_method) as groups:
        engine = build_engine(config, groups)
        owned = {entry.slice.name: entry for entry in engine.owned()}

        def gradient(parameters: Weights, site: int, step: int) -> Weights:
            for name, entry in owned.items():
                entry.parameter.copy_(parameters[name])
            engine.publish_parameters()
            loss = engine.forward_backward(rank_batches(config, topology, 0, step - 1, site=site, sites=sites))
            engine.gradient_norm(loss.tokens)
            return {name: entry.gradient / loss.tokens for name, entry in owned.items()}

        start = {name: entry.parameter.clone() for name, entry in owned.items()}
        recipe = Recipe(
            sites=sites,
            every=every,
            fragments=fragments,
            overlap=overlap,
            merge=merge,
            outer_rate=rate,
            outer_momentum=momentum,
            rate=LEARNING_RATE,
            beta1=config.optim.beta1,
            beta2=config.optim.beta2,
            epsilon=config.optim.epsilon,
            decay=config.optim.weight_decay,
            clip=config.optim.clip_grad_norm,
        )
        shapes = {name: entry.slice.global_shape for name, entry in owned.items()}
        trained = train_reference(start, gradient, recipe, steps, lambda name: _fragment(name, config.model, fragments))
        return [
            {name: value.reshape(shapes[name]).numpy() for name, value in site.parameters.items()} for site in trained
        ]


def _fragment(name: str, model: object, fragments: int) -> int:
    """Layers are strided by the paper; where embedding, head and last norm go is ours to choose."""
    if match := re.search(r"layers\.(\d+)\.", name):
        return int(match[1]) % fragments
    return fragment_of(name, model, fragments)  # type: ignore[arg-type]


LAYOUTS = {"one rank": (1, []), "TP 2 x DP 2": (4, ["parallel.tensor=2"])}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_papers(method: str, layout: str) -> None:
    ranks, parallel = LAYOUTS[layout]
    words, steps = overrides(method)
    words = [*words, "train.micro_batch=1" if ranks == 4 else "train.micro_batch=2", *parallel]
    sites = run_sites(train_site, 2, ranks, steps, words, [steps])
    (reference,) = run_ranks(_reference, 1, method, 2)
    for number, expected in enumerate(reference):
        together = assemble([trajectory.parameters[-1] for trajectory in sites[number]])
        assert together.keys() == expected.keys()
        for name, values in expected.items():
            # Of the whole tensor: AdamW divides by small numbers, which magnifies the rounding of single ones.
            difference = np.linalg.norm(together[name] - values) / np.linalg.norm(values)
            assert difference <= 1e-5, f"site {number} {name} differs by {difference:.1e}"


@pytest.mark.parametrize("wire", ["bf16", "int8", "int4", "topk"])
@pytest.mark.parametrize("count", [2, 3])
def test_lossy_wires_keep_the_outer_parameters_equal(wire: str, count: int) -> None:
    """`sync.verify_every=1` compares outer parameters and momentum after every round."""
    words, steps = overrides("Streaming DiLoCo")
    words = [*words, f"sync.wire={wire}", "sync.verify_every=1", "train.global_batch=12"]
    sites = run_sites(train_site, count, 1, steps, words, [steps])
    assert all(trajectory.losses[-1] < trajectory.losses[0] for (trajectory,) in sites)


@pytest.mark.parametrize("parallel", [["parallel.pipeline=2"], ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]])
def test_all_pipeline_chunks_are_synced(parallel: list[str]) -> None:
    words, _ = overrides("DiLoCo")
    sites = run_sites(train_site, 2, 2, 4, [*words, "train.micro_batch=1", *parallel], [4])
    first, second = (assemble([trajectory.parameters[-1] for trajectory in site]) for site in sites)
    for name, values in first.items():
        assert values.tobytes() == second[name].tobytes(), name  # right after a round with tau 0, all is equal


def test_torch_agrees_with_the_outer_optimizer() -> None:
    """The reference's Nesterov is torch's."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    recipe = Recipe(sites=1, every=1, fragments=1, overlap=0, merge=0, outer_rate=0.7, outer_momentum=0.9)
    outer, momentum = torch.ones(3), torch.zeros(3)
    for delta in (torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.3, 0.1, -0.1])):
        parameter.grad = delta.clone()
        optimizer.step()
        outer, momentum = nesterov(outer, momentum, delta, recipe)
    torch.testing.assert_close(parameter.detach(), outer)
