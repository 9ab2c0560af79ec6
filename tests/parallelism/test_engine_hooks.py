"""What cross-site sync and guards need of the engine: announced buckets, addresses, discarded steps."""

import datetime

import numpy as np
import pytest
import torch
from support.engines import compose_nano, rank_batches, snapshot, topology_of
from support.ranks import RankWorld, run_ranks

from isthmus.parallelism.gradients import GradientBucket
from isthmus.parallelism.groups import site_groups
from isthmus.train.assembly import build_engine

TIMEOUT = datetime.timedelta(seconds=300)


def _watch_buckets(world: RankWorld, overrides: list[str]) -> dict[str, object]:
    config = compose_nano(*overrides)
    topology = topology_of(config, world)
    with site_groups(topology, rank=world.rank, timeout=TIMEOUT, init_method=world.init_method) as groups:
        engine = build_engine(config, groups)
        announced: list[int] = []
        in_backward: list[bool] = []
        summed: dict[int, float] = {}
        finished = [False]

        def ready(bucket: GradientBucket) -> None:
            announced.append(bucket.index)
            in_backward.append(not finished[0])
            bucket.wait()
            summed[bucket.index] = sum(float(view.double().sum()) for _, view in bucket.slices)

        original = engine._config.finalize_model_grads_func

        def finalize(*args: object, **kwargs: object) -> None:
            finished[0] = True
            original(*args, **kwargs)

        engine._config.finalize_model_grads_func = finalize
        buckets = engine.on_bucket_ready(ready)
        for step in range(2):
            announced.clear(), in_backward.clear(), summed.clear()
            finished[0] = False
            loss = engine.forward_backward(rank_batches(config, topology, world.rank, step))
            # Before anything else touches the gradients, the views hold the site's sums.
            now = {bucket.index: sum(float(v.double().sum()) for _, v in bucket.slices) for bucket in buckets}
            engine.gradient_norm(loss.tokens)
            engine.step(1e-3)
        owned = sorted((s.slice.name, s.slice.offset, s.slice.start, s.slice.stop) for s in engine.owned())
        in_buckets = sorted((s.name, s.offset, s.start, s.stop) for b in buckets for s, _ in b.slices)
    return {
        "buckets": len(buckets),
        "announced": list(announced),
        "in_backward": list(in_backward),
        "same_sums": all(np.isclose(summed[index], now[index], rtol=1e-9) for index in now),
        "same_addresses": owned == in_buckets,
    }


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [
        (1, []),
        (2, []),
        (2, ["parallel.distributed_optimizer=false"]),
        (4, ["parallel.pipeline=2", "parallel.tensor=2"]),
        (2, ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]),
    ],
    ids=["one", "DP2-distributed", "DP2", "TP2-PP2", "PP2-interleaved"],
)
def test_every_bucket_is_announced_once_a_step_and_during_backward(world_size: int, overrides: list[str]) -> None:
    for rank in run_ranks(_watch_buckets, world_size, overrides):
        assert rank["buckets"] >= 2, "one bucket cannot overlap with anything"
        assert sorted(rank["announced"]) == list(range(rank["buckets"]))
        assert all(rank["in_backward"]), "a bucket waited for the end of the backward pass"
        assert rank["same_sums"]
        assert rank["same_addresses"], "buckets and owned slices must name the same numbers"


def _discard_and_retry(world: RankWorld) -> list[bool]:
    config = compose_nano()
    topology = topology_of(config, world)
    with site_groups(topology, rank=world.rank, timeout=TIMEOUT, init_method=world.init_method) as groups:
        engine = build_engine(config, groups)

        def run(step: int, keep: bool) -> float:
            loss = engine.forward_backward(rank_batches(config, topology, world.rank, step))
            norm = engine.gradient_norm(loss.tokens)
            if keep:
                engine.step(1e-3)
            else:
                engine.discard()
            return norm

        run(0, keep=True)
        before = snapshot(list(engine.owned()), "parameter")
        first = run(1, keep=False)
        after = snapshot(list(engine.owned()), "parameter")
        again = run(1, keep=True)
        moved = snapshot(list(engine.owned()), "parameter")
    return [
        all(np.array_equal(a, b) for (_, a), (_, b) in zip(before, after, strict=True)),
        first == again,
        not all(np.array_equal(a, b) for (_, a), (_, b) in zip(after, moved, strict=True)),
    ]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_discarded_step_leaves_no_trace(world_size: int) -> None:
    for unchanged, same_norm, moved in run_ranks(_discard_and_retry, world_size):
        assert unchanged
        assert same_norm, "the same batch after a discarded step has another gradient"
        assert moved


def _evaluate(world: RankWorld, overrides: list[str]) -> tuple[list[float], float]:
    config = compose_nano(*overrides)
    topology = topology_of(config, world)
    with site_groups(topology, rank=world.rank, timeout=TIMEOUT, init_method=world.init_method) as groups:
        engine = build_engine(config, groups)
        batches = rank_batches(config, topology, world.rank, 0)
        sums = engine.evaluate(batches)
        total = engine.sum_over_data_ranks(sums.sum(0)).tolist()
        loss = engine.forward_backward(batches)
        # Parameters that were just updated must be the ones that are evaluated.
        engine.gradient_norm(loss.tokens)
        engine.step(1e-2)
        changed = engine.sum_over_data_ranks(engine.evaluate(batches).sum(0)).tolist()
        trained = engine.forward_backward(batches)
    return [total[0] / total[1], loss.mean], abs(changed[0] / changed[1] - trained.mean)


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [(1, []), (2, []), (2, ["parallel.tensor=2"]), (2, ["parallel.pipeline=2"])],
    ids=["one", "DP2", "TP2", "PP2"],
)
def test_evaluation_measures_what_training_does(world_size: int, overrides: list[str]) -> None:
    for (evaluated, trained), difference in run_ranks(_evaluate, world_size, overrides):
        assert evaluated == pytest.approx(trained, rel=1e-5)
        assert difference < 1e-4


def test_stand_ins_leave_torch_itself_alone() -> None:
    from isthmus.parallelism import cpu

    if torch.cuda.is_available():
        pytest.skip("there is a GPU: nothing is stood in for")
    cpu.install()
    with pytest.raises(AssertionError, match="CUDA"):
        torch.zeros(1, device="cuda")
    with cpu.construction():
        assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1).type() == "torch.FloatTensor"
