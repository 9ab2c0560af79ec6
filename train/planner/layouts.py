"""Which layouts a model can have on a site's accelerators, and which are fastest within its memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from isthmus.errors import UserError
from isthmus.train.planner.cluster import Cluster
from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.memory import USABLE, memory
from isthmus.train.planner.predict import Alone, step_alone
from isthmus.train.planner.shape import Shape

_MICRO_BATCHES = (1, 2, 4, 8, 16)
_CHUNKS = (1, 2, 4, 8)
_LARGEST_PIPELINE = 64
_LONG_SEQUENCE = 16_384  # from here on context parallelism is tried
_NO_SYNC = Sync()


@dataclass(frozen=True)
class Timed:
    layout: Layout
    alone: Alone

    @property
    def tokens_per_second(self) -> float:
        return self.layout.global_batch * self.layout.sequence_length / self.alone.seconds


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a site offers and the run asks: ranks, spares, sites, batch in samples, sequence length, precision."""

    ranks: int
    spares: int  # of a site, beside the ranks
    sites: int
    batch: float
    fixed_batch: int | None
    sequence_length: int
    precision: str
    node_size: int
    memory_bytes: float
    gpu: bool


def layouts(shape: Shape, room: Room) -> Iterator[Layout]:
    """Yield layouts that divide the shape and the accelerators, with a batch near the wished one."""
    contexts = (1, 2, 4, 8, 16) if room.sequence_length >= _LONG_SEQUENCE and room.gpu else (1,)
    for tensor in (1, 2, 4, 8):
        if tensor > room.node_size or shape.heads % tensor or shape.groups % tensor or shape.ffn % tensor:
            continue
        for pipeline in (p for p in range(1, _LARGEST_PIPELINE + 1) if shape.layers % p == 0):
            for context in contexts:
                model_parallel = tensor * pipeline * context
                if model_parallel <= room.ranks:
                    base = Layout(
                        tensor=tensor,
                        sequence=tensor > 1 and room.sequence_length // context % tensor == 0,
                        pipeline=pipeline,
                        context=context,
                        sequence_length=room.sequence_length,
                        precision=room.precision,
                    )
                    yield from _batches(shape, base, room, room.ranks // model_parallel)


def _batches(shape: Shape, base: Layout, room: Room, most_data: int) -> Iterator[Layout]:
    for micro in _MICRO_BATCHES:
        # More ranks than samples would stand idle: then fewer are used.
        data = min(most_data, max(1, int(2 * room.batch / (micro * room.sites))))
        if room.fixed_batch is not None:
            per_site = room.fixed_batch / room.sites / micro
            if per_site != int(per_site):
                continue
            data = next(d for d in range(min(data, int(per_site)), 0, -1) if per_site % d == 0)
        for chunks in _CHUNKS:
            if chunks > 1 and (base.pipeline == 1 or shape.layers % (base.pipeline * chunks)):
                continue
            passes = max(1, round(room.batch / (micro * data * room.sites)))
            if chunks > 1:
                passes = max(1, round(passes / base.pipeline)) * base.pipeline
            batch = micro * data * room.sites * passes
            if (room.fixed_batch or batch) != batch or (batch > 2 * room.batch and passes > 1):
                continue
            for recompute in ("none", "full"):
                yield replace(
                    base,
                    data=data,
                    micro_batch=micro,
                    virtual_pipeline=chunks,
                    global_batch=batch,
                    recompute=recompute,
                )


def fastest(shape: Shape, room: Room, cluster: Cluster, *, keep: int) -> list[Timed]:
    """Return the `keep` fastest layouts that fit into memory without sync between sites.

    Raises:
        UserError: none fits; says what is missing.
    """
    limit = USABLE * room.memory_bytes
    least: tuple[float, Layout] | None = None
    fitting: list[Layout] = []
    for layout in layouts(shape, room):
        needed = memory(shape, layout, _NO_SYNC, layout.microbatches(room.sites)).total
        if needed <= limit:
            # Recomputation is only for what does not fit without it.
            if layout.recompute == "full" and fitting and fitting[-1] == replace(layout, recompute="none"):
                continue
            fitting.append(layout)
        if least is None or needed < least[0]:
            least = needed, layout
    if not fitting:
        raise _no_room(shape, room, least)
    timed = [Timed(layout, step_alone(shape, layout, cluster)) for layout in fitting]
    timed.sort(key=lambda entry: -entry.tokens_per_second)
    return timed[:keep]


def _no_room(shape: Shape, room: Room, least: tuple[float, Layout] | None) -> UserError:
    if least is None:
        return UserError(
            f"no layout of {room.ranks} accelerators a site takes {room.fixed_batch or room.batch:g} samples",
            where="plan.global_batch",
            fix=f"choose a multiple of {room.sites}",
        )
    needed, layout = least
    per_rank = f"{needed / 1e9:.1f} of {room.memory_bytes / 1e9:.0f} GB ({USABLE:.0%} usable)"
    return UserError(
        f"{shape.params:.3g} parameters fit no layout of {room.ranks} accelerators: the leanest needs {per_rank}, "
        f"with tensor {layout.tensor} x pipeline {layout.pipeline}",
        where="cluster.sites",
        fix=_enough(shape, room) or f"set plan.max_params below {shape.params:.2g}",
    )


def _enough(shape: Shape, room: Room) -> str | None:
    """Return how many accelerators the model would fit on, by doubling."""
    for doublings in range(1, 15):
        larger = replace(room, ranks=room.ranks * 2**doublings)
        for layout in layouts(shape, larger):
            if memory(shape, layout, _NO_SYNC, layout.microbatches(room.sites)).total <= USABLE * room.memory_bytes:
                return (
                    f"{(room.ranks + room.spares) * 2**doublings} accelerators a site would do, or set plan.max_params"
                )
    return None
