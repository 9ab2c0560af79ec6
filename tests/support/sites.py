"""Train `nano` on random tokens in several sites that meet over real sockets."""

import datetime
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from isthmus.parallelism.engine import Engine
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.topology import Topology
from isthmus.train.assembly import build_engine
from isthmus.train.config import Config
from isthmus.train.parts import SiteSync
from isthmus.train.sites import join_sites
from isthmus.train.validate import plan_run
from support.engines import Owned, compose_nano, rank_batches, snapshot
from support.ranks import RankWorld

TIMEOUT = datetime.timedelta(seconds=300)


@dataclass
class SiteTrajectory:
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    parameters: list[Owned] = field(default_factory=list)  # after each step that was asked for
    bytes_sent: float = 0.0
    bytes_received: float = 0.0


def site_overrides(world: RankWorld) -> list[str]:
    names = [f"site{number}" for number in range(world.sites)]
    return [
        f"sites.name=site{world.site}",
        f"sites.names=[{','.join(names)}]",
        f"sites.store={world.store}",
        "sites.wait_seconds=120",
        "lane.deadline_seconds=120",
    ]


@contextmanager
def site_engine(world: RankWorld, config: Config) -> Iterator[tuple[Engine, SiteSync, Topology]]:
    """Meet the other sites and build this rank's engine and sync."""
    plan = plan_run(config, world.size)
    with ExitStack() as stack:
        sync = stack.enter_context(join_sites(config, plan, world.rank, world.size, lambda line: None))
        groups = stack.enter_context(
            site_groups(plan.topology, rank=world.rank, timeout=TIMEOUT, init_method=world.init_method)
        )
        engine = build_engine(config, groups)
        sync.attach(engine)
        sync.begin(0)
        yield engine, sync, plan.topology


def train_site(world: RankWorld, steps: int, overrides: list[str], snapshots: list[int]) -> SiteTrajectory:
    """Rank function: train for some steps and return what happened, with the parameters after the steps named."""
    config = compose_nano(*site_overrides(world), *overrides)
    trajectory = SiteTrajectory()
    with site_engine(world, config) as (engine, sync, topology):
        for step in range(1, steps + 1):
            batches = rank_batches(config, topology, world.rank, step - 1, site=world.site, sites=world.sites)
            loss = sync.reduce(step, engine.forward_backward(batches))
            trajectory.losses.append(loss.mean)
            trajectory.grad_norms.append(engine.gradient_norm(loss.tokens))
            engine.step(config.optim.learning_rate)
            sync.after_step(step, last=step == steps)
            if step in snapshots:
                trajectory.parameters.append(snapshot(list(engine.owned()), "parameter"))
            report = sync.report()
            trajectory.bytes_sent += report["wan_bytes_sent"]
            trajectory.bytes_received += report["wan_bytes_received"]
    return trajectory
