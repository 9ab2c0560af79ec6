"""From a configuration to this rank's SiteSync: meets the other sites and leaves them at the end."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from isthmus.config import flat, to_plain
from isthmus.parallelism.sites.config import SyncConfig, SyncKind, Wire
from isthmus.parallelism.sites.exact import ExactSync
from isthmus.parallelism.sites.lane import Lane
from isthmus.parallelism.sites.local import LocalSync, OuterRule
from isthmus.parallelism.sites.meeting import Attendance, meet
from isthmus.parallelism.sites.wire import codec_for
from isthmus.train.config import PER_SITE, Config, run_name
from isthmus.train.parts import NoSync, SiteSync
from isthmus.train.validate import Plan

_TOPK_DENSITY = 0.02


@contextmanager
def join_sites(
    config: Config,
    plan: Plan,
    rank: int,
    world_size: int,
    tell: Callable[[str], None],
    fingerprints: Mapping[str, str] | None = None,
) -> Iterator[SiteSync]:
    """Meet the other sites, if there are any, and yield what keeps them one model.

    Args:
        fingerprints: of the data of each source, which must be the same in all sites.

    Raises:
        UserError: a site did not come, or is set up for another run.
    """
    if config.sync.kind is SyncKind.none:
        yield NoSync()
        return
    attendance = Attendance(
        run=run_name(config),
        world_size=world_size,
        rank=rank,
        config=shared_keys(config, fingerprints or {}),
        again=(plan.folder / "metrics.jsonl").exists(),
    )
    with meet(config.sites, config.lane, attendance, tell=tell) as lane:
        tell(f"{config.sites.name} has met {', '.join(name for name in lane.names if name != config.sites.name)}")
        sync = build_sync(config, lane)
        try:
            yield sync
        finally:
            sync.close()


def build_sync(config: Config, lane: Lane) -> ExactSync | LocalSync:
    """Build the sync that the configuration describes on an open lane."""
    sync = config.sync
    codec = codec_for(sync.wire, _TOPK_DENSITY if sync.density is None else sync.density)
    decay = 0.0 if sync.wire is Wire.fp32 else 1.0 if sync.error_decay is None else sync.error_decay
    threads = torch.get_num_threads()
    if sync.kind is SyncKind.exact:
        return ExactSync(lane, codec, error_decay=decay, verify_every=sync.verify_every, threads=threads)
    return LocalSync(
        lane,
        codec,
        _outer_rule(sync),
        config.model,
        error_decay=decay,
        verify_every=sync.verify_every,
        threads=threads,
    )


def _outer_rule(sync: SyncConfig) -> OuterRule:
    assert sync.every
    assert sync.fragments
    assert sync.overlap_steps is not None
    assert sync.merge is not None
    assert sync.outer_learning_rate is not None
    assert sync.outer_momentum is not None
    return OuterRule(
        every=sync.every,
        fragments=sync.fragments,
        overlap_steps=sync.overlap_steps,
        merge=sync.merge,
        learning_rate=sync.outer_learning_rate,
        momentum=sync.outer_momentum,
    )


def shared_keys(config: Config, fingerprints: Mapping[str, str]) -> dict[str, object]:
    """Return every key that must be the same in all sites. Where the data lies may differ, what it is may not."""
    keys = flat(to_plain(config))
    return {
        name: value
        for name, value in keys.items()
        if name not in PER_SITE and name.partition(".")[0] not in PER_SITE and not _is_place(name)
    } | {f"data.sources.{name} (content)": value for name, value in fingerprints.items()}


def _is_place(name: str) -> bool:
    return name.startswith("data.sources.") and name.endswith(".path")
