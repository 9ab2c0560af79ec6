"""The whole model with documents masked: the loss of a document does not depend on what else is in the sample."""

import datetime
from dataclasses import dataclass

import torch
from support.engines import compose_nano, topology_of
from support.ranks import RankWorld, run_ranks

from isthmus.parallelism.groups import site_groups
from isthmus.train.assembly import build_engine


@dataclass(frozen=True)
class Batch:
    tokens_BS: torch.Tensor
    labels_BS: torch.Tensor
    mask_BS: torch.Tensor
    documents_BS: torch.Tensor | None = None


def losses(world: RankWorld, *overrides: str) -> list[list[float]]:
    """Return the loss of a document behind another one, behind yet another one, and of the same sample unmasked."""
    config = compose_nano(*overrides, "data.mask_documents=true", "data.reset_positions=true")
    topology = topology_of(config, world)
    with site_groups(
        topology, rank=world.rank, timeout=datetime.timedelta(seconds=300), init_method=world.init_method
    ) as groups:
        engine = build_engine(config, groups)
        draw = torch.Generator().manual_seed(1)
        document, other, another = (torch.randint(1, 500, (count,), generator=draw) for count in (40, 25, 25))
        rows = torch.stack([torch.cat([before, document]) for before in (other, another)])
        numbers = torch.cat([torch.zeros(25), torch.ones(39)]).int().expand(2, -1)
        mask = torch.cat([torch.zeros(25), torch.ones(39)]).expand(2, -1)
        batches = [
            Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), mask.contiguous(), documents)
            for documents in (numbers.contiguous(), None)
        ]
        return engine.evaluate(batches)[:, 0].tolist()


def test_a_documents_loss_does_not_depend_on_its_neighbours() -> None:
    for overrides in ([], ["parallel.tensor=2", "parallel.sequence=true"], ["parallel.pipeline=2"]):
        size = 2 if overrides else 1
        first, second, open_first, open_second = run_ranks(losses, size, *overrides)[0]
        assert abs(first - second) < 1e-5 * first
        assert abs(open_first - open_second) > 1e-3 * first
