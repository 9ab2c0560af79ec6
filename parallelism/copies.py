"""Whether the copies of a parameter that several ranks of a site hold are still the same bits."""

from collections.abc import Iterable

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from isthmus.parallelism.slices import Slice

EMBEDDING = "embedding.word_embeddings.weight"


def copies_differ(
    owned: Iterable[tuple[Slice, Tensor]],
    groups: ProcessGroupCollection,
    *,
    tied_over_stages: bool,
    device: torch.device,
) -> bool:
    """Return whether any parameter that is not split over the tensor ranks differs between them, or a tied embedding
    between the first and the last stage; all ranks of these groups must call this together.

    Args:
        owned: this rank's part of the fp32 parameters.
        tied_over_stages: two pipeline stages hold the embedding.
    """
    sums: dict[str, int] = {}
    embedding = 0
    for where, values in owned:
        if where.name == EMBEDDING:
            embedding = _add(embedding, checksum(where, values))
        elif where.shape == where.global_shape and ".experts." not in where.name:
            sums[where.name] = _add(sums.get(where.name, 0), checksum(where, values))
    differ = False
    if groups.tp.size() > 1:
        # Which of them a rank owns a part of is the same on all tensor ranks.
        differ |= _differ(torch.tensor([sums[name] for name in sorted(sums)], device=device), groups.tp)
    if tied_over_stages and (groups.pp.rank() in (0, groups.pp.size() - 1)):
        # The stages shard it differently: what counts is the sum over all parts.
        total = torch.tensor([embedding], device=device)
        torch.distributed.all_reduce(total, group=groups.dp_cp)
        differ |= _differ(total, groups.embd)
    return differ


def checksum(where: Slice, values: Tensor) -> int:
    """Return a sum over all numbers of (bits x an odd factor of the place), modulo 2^64.

    Sums of parts can be added, in any order; one flipped bit always shows.
    """
    bits = values.detach().reshape(-1).view(torch.int32).long()
    places = torch.arange(where.start, where.stop, device=bits.device)
    return int((bits * (2 * places + 1)).sum())


def _add(first: int, second: int) -> int:
    total = (first + second) & (2**64 - 1)
    return total - 2**64 if total >= 2**63 else total


def _differ(values: Tensor, group: ProcessGroup) -> bool:
    if not len(values):
        return False
    largest, smallest = values.clone(), values.clone()
    torch.distributed.all_reduce(largest, op=ReduceOp.MAX, group=group)
    torch.distributed.all_reduce(smallest, op=ReduceOp.MIN, group=group)
    return bool((largest != smallest).any())
