"""The cost model against the formulas and figures of its papers."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.planner import needs_data, published

from isthmus.config import compose
from isthmus.errors import UserError
from isthmus.parallelism.flops import count_parameters, model_flops_per_token
from isthmus.train.config import Config
from isthmus.train.planner import predict
from isthmus.train.planner.accelerators import A100, ACCELERATORS, H100
from isthmus.train.planner.cluster import Cluster, Site
from isthmus.train.planner.constants import A100_CONSTANTS, constants_of, derive, sustained_clock
from isthmus.train.planner.kernels import Device, all_reduce, group_of
from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.memory import in_flight_layers, layer_activation_bytes, memory, state_bytes
from isthmus.train.planner.published import full_recompute_flops
from isthmus.train.planner.reliability import daly_interval, goodput, reliability, spares
from isthmus.train.planner.shape import gpt, shape_of, shapes_for, usual_aspect

_GPT = gpt(layers=96, hidden=12288, heads=96)


@needs_data
def test_megatron_parameter_counts() -> None:
    """arXiv 2104.04473, table 1: within 1%, or what is printed with one decimal (1.65B stands there as 1.7)."""
    for billions, heads, hidden, layers, *_ in published()["megatron_sc21_table1_A100"]["rows"]:
        shape = gpt(layers=layers, hidden=hidden, heads=heads)
        h, v, s = hidden, 51200, 2048
        formula = 12 * layers * h**2 * (1 + 13 / (12 * h) + (v + s) / (12 * layers * h))
        assert shape.params == pytest.approx(formula, rel=1e-5)
        assert shape.params == pytest.approx(billions * 1e9, rel=0.01, abs=0.05e9)


@pytest.mark.parametrize("preset", ["nano", "nano-moe", "tiny", "124m", "1b", "8b", "70b", "405b"])
def test_shapes_count_what_the_engine_counts(preset: str) -> None:
    model = compose(Config, "train", [f"model={preset}"]).model
    shape = shape_of(model)
    assert shape.params == count_parameters(model)
    assert shape.model_flops_per_token(4096) == pytest.approx(model_flops_per_token(model, 4096), rel=1e-12)


def test_full_recomputation_flops() -> None:
    """arXiv 2104.04473: 175B, batch 1536, s 2048 take 451 billion FLOPs ... 96 B s l h^2 (1 + s/6h + V/16lh)."""
    expected = 96 * 1536 * 2048 * 96 * 12288**2 * (1 + 2048 / (6 * 12288) + 51200 / (16 * 96 * 12288))
    assert full_recompute_flops(_GPT, 1536, 2048) == pytest.approx(expected, rel=1e-12)


def test_activations_per_layer() -> None:
    """arXiv 2205.05198, table 2: s b h (34 + 5 a s / h), by tensor, sequence and recomputation."""
    s, b, h, a, t = 2048, 2, 12288, 96, 8
    base = Layout(micro_batch=b, sequence_length=s, attention="core")
    tensor = replace(base, tensor=t)
    sequence = replace(tensor, sequence=True)
    assert layer_activation_bytes(_GPT, base) == pytest.approx(s * b * h * (34 + 5 * a * s / h))
    assert layer_activation_bytes(_GPT, tensor) == pytest.approx(s * b * h * (10 + 24 / t + 5 * a * s / (h * t)))
    assert layer_activation_bytes(_GPT, sequence) == pytest.approx(s * b * h / t * (34 + 5 * a * s / h))
    assert layer_activation_bytes(_GPT, replace(sequence, recompute="selective")) == pytest.approx(34 * s * b * h / t)
    assert layer_activation_bytes(_GPT, replace(base, recompute="full")) == pytest.approx(2 * s * b * h)


@pytest.mark.parametrize(
    ("precision", "gradients", "sharded", "whole"),  # Megatron-core, README of the distributed optimizer
    [
        ("bf16", 2, lambda d: 4 + 16 / d, 20),
        ("bf16", 4, lambda d: 6 + 12 / d, 18),
        ("fp32", 4, lambda d: 8 + 8 / d, 16),
    ],
)
def test_optimizer_bytes(precision: str, gradients: int, sharded: object, whole: int) -> None:
    layout = Layout(data=16, precision=precision, gradient_bytes=gradients)
    assert sum(state_bytes(layout)) == pytest.approx(sharded(16))  # type: ignore[operator]
    assert sum(state_bytes(replace(layout, distributed_optimizer=False))) == whole


def test_pipeline_bubbles() -> None:
    """(p - 1) / m for 1F1B, (p - 1) / (v m) interleaved; a vocabulary small enough not to matter."""
    shape = gpt(layers=96, hidden=12288, heads=96, vocabulary=128)
    site = Site(name="main", accelerator=A100, count=8)
    for chunks, expected in ((1, 7 / 32), (4, 7 / 128)):
        layout = Layout(pipeline=8, virtual_pipeline=chunks, global_batch=32, attention="core")
        prediction = predict(shape, layout, Cluster(sites=[site]))
        assert prediction.bubble == pytest.approx(expected, rel=0.01)


def test_activations_in_flight() -> None:
    """arXiv 2205.05198, section 4.2.3: p microbatches of l/p layers; interleaved 1 + (p-1)/(p v) times as many."""
    layout = Layout(pipeline=8, tensor=8)
    assert in_flight_layers(_GPT, layout, 64) == 96
    assert in_flight_layers(_GPT, replace(layout, virtual_pipeline=3), 64) == pytest.approx(96 * (1 + 7 / 24))
    assert in_flight_layers(_GPT, layout, 2) == 24  # no more microbatches than there are


@needs_data
def test_korthikanti_memory_within_a_tenth() -> None:
    """arXiv 2205.05198, figure 1: parameters with optimizer state, activations without and with the paper's means."""
    rows = {row[0]: row for row in published()["korthikanti_table5_iter_s"]["rows"]}
    for name, figures in published()["korthikanti_fig1_GiB"].items():
        _, layers, hidden, heads, tensor, pipeline, chunks, batch, *_ = rows[name]
        layout = Layout(
            tensor=tensor,
            pipeline=pipeline,
            virtual_pipeline=chunks,
            micro_batch=4 if name == "22B" else 1,
            global_batch=batch,
            attention="core",
            distributed_optimizer=False,
        )
        shape = gpt(layers=layers, hidden=hidden, heads=heads)
        leaner = replace(layout, sequence=True, recompute="selective")
        plain = memory(shape, layout, Sync(), layout.microbatches(1))
        lean = memory(shape, leaner, Sync(), layout.microbatches(1))
        assert (plain.parameters + plain.gradients + plain.optimizer) / 2**30 == pytest.approx(
            figures["par_opt"], rel=0.10
        )
        assert plain.activations / 2**30 == pytest.approx(figures["act_none"], rel=0.10)
        assert lean.activations / 2**30 == pytest.approx(figures["act_sp_sel"], rel=0.10)


def test_daly_intervals_and_goodput() -> None:
    """Daly 2006: a dump of 5 minutes with failures every 24 h, 6 h and 15 min."""
    assert daly_interval(5, 24 * 60) == pytest.approx(117, abs=0.5)
    assert daly_interval(5, 6 * 60) == pytest.approx(57, abs=0.5)
    assert daly_interval(5, 15) == pytest.approx(9.1, abs=0.05)
    best = daly_interval(5, 360)
    for other in (0.6 * best, 1.6 * best):  # it is the best one
        assert goodput(other, 5, 360, 10) < goodput(best, 5, 360, 10)
    assert goodput(60, 0.001, 1e9, 0) == pytest.approx(1.0, abs=1e-4)


def test_failures_and_spares_grow_with_the_count() -> None:
    def at(failures: float) -> object:
        return reliability(
            failures_per_hour=failures,
            rank_state_bytes=1e9,
            checkpoint_bytes=1e12,
            storage_bytes_per_second=1e11,
            restart_seconds=600,
            repair_hours=24,
            node_size=8,
        )

    few, many = at(0.01), at(0.4)
    assert few.goodput > many.goodput > 0.5  # type: ignore[attr-defined]
    assert few.interval_seconds > many.interval_seconds  # type: ignore[attr-defined]
    # 0.4 x 24 = 9.6 expected; a Poisson of 9.6 exceeds 17 with less than a percent
    assert spares(9.6, 8) == 17 * 8
    with pytest.raises(UserError, match="a failure every 1 minutes"):
        at(60.0)


def test_other_accelerators_follow_from_the_a100_by_the_stated_rule() -> None:
    assert constants_of(A100) is A100_CONSTANTS
    assert sustained_clock(A100) == 1.0
    h100 = constants_of(H100)
    # 700 W / 989.4 against 400 W / 312, of which 0.7 is needed: the root of 0.788
    assert sustained_clock(H100) == pytest.approx((700 / 989.4 / (400 / 312) / 0.7) ** 0.5)
    assert h100.matmul_efficiency == pytest.approx(A100_CONSTANTS.matmul_efficiency * sustained_clock(H100))
    assert h100.bandwidth_efficiency == A100_CONSTANTS.bandwidth_efficiency
    assert derive(H100) == h100


def test_a_collective_reaches_its_bandwidth_and_the_network_is_slower() -> None:
    device = Device(H100, constants_of(H100))
    inside, across = all_reduce(device, group_of(8, 1, 8), 1e9), all_reduce(device, group_of(16, 1, 8), 1e9)
    assert inside == pytest.approx(2 * 7 / 8 * 1e9 / (450e9 * A100_CONSTANTS.link_efficiency), rel=0.05)
    assert across > inside
    # one member a node: one card of 50 GB/s
    apart = all_reduce(device, group_of(4, 8, 8), 1e9)
    assert apart == pytest.approx(2 * 3 / 4 * 1e9 / (50e9 * A100_CONSTANTS.network_efficiency), rel=0.05)


@settings(deadline=None, max_examples=30)
@given(
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.sampled_from([1, 2, 4, 8]),
    data=st.sampled_from([1, 2, 4]),
    micro=st.sampled_from([1, 2]),
    recompute=st.sampled_from(["none", "full"]),
    name=st.sampled_from(sorted(ACCELERATORS)),
)
def test_every_prediction_adds_up(tensor: int, pipeline: int, data: int, micro: int, recompute: str, name: str) -> None:
    shape = gpt(layers=16, hidden=2048, heads=16)
    layout = Layout(
        tensor=tensor, pipeline=pipeline, data=data, micro_batch=micro, global_batch=32, recompute=recompute
    )
    site = Site(name="main", accelerator=ACCELERATORS[name], count=layout.ranks)
    prediction = predict(shape, layout, Cluster(sites=[site]))
    assert sum(prediction.parts.values()) == pytest.approx(prediction.step_seconds, rel=1e-9)
    assert all(seconds >= 0 for seconds in prediction.parts.values())
    assert 0 < prediction.mfu < 1
    assert prediction.utilisation == 1.0
    more = predict(shape, replace(layout, global_batch=64), Cluster(sites=[site]))
    assert prediction.step_seconds < more.step_seconds < 2.01 * prediction.step_seconds
    recomputed = memory(shape, replace(layout, recompute="full"), Sync(), prediction.microbatches)
    assert recomputed.total <= prediction.memory.total * 1.0001


def test_experts_split_memory_and_cost_an_exchange() -> None:
    """A mixture of 8 with 2 a token: FLOPs of 2, parameters of 8, and all-to-alls when they are split."""
    dense = gpt(layers=8, hidden=2048, heads=16)
    mixture = replace(dense, experts=8, experts_per_token=2)
    assert mixture.params > 4 * dense.params
    assert mixture.model_flops_per_token(2048) < 2 * dense.model_flops_per_token(2048)
    cluster = Cluster(sites=[Site(name="main", accelerator=H100, count=8)])
    whole = predict(mixture, Layout(data=8, global_batch=64), cluster)
    split = predict(mixture, Layout(data=8, expert=8, global_batch=64), cluster)
    assert split.memory.parameters < 0.4 * whole.memory.parameters
    assert split.parts["tensor"] > whole.parts["tensor"] == 0.0


@pytest.mark.parametrize("params", [3e7, 1e9, 7e9, 70e9, 1e12])
def test_shapes_have_the_asked_size_and_a_usual_aspect(params: float) -> None:
    shape = next(shapes_for(params, 32_000))
    assert shape.params == pytest.approx(params, rel=0.12)
    assert 0.6 < shape.hidden / shape.layers / usual_aspect(params) < 1.6
    assert shape.heads % shape.groups == 0
    assert shape.heads * shape.head_width == shape.hidden


def test_layouts_that_cannot_run_name_the_closest_that_can() -> None:
    cluster = Cluster(sites=[Site(name="main", accelerator=H100, count=64)])
    shape = shape_of(compose(Config, "train", ["model=8b"]).model)
    for layout, part in (
        (Layout(tensor=3, global_batch=1), "the nearest divisor is 4"),
        (Layout(pipeline=5, global_batch=1), "the nearest divisor is 4"),
        (Layout(data=3, global_batch=8), "the nearest that works is 9"),
        (Layout(data=128, global_batch=128), "at most 64 ranks"),
        (Layout(pipeline=4, virtual_pipeline=2, global_batch=6), "a multiple of 4 microbatches"),
        (Layout(data=4, expert=2, global_batch=4), "does not divide 0 experts; leave it 1"),
        (Layout(context=3, global_batch=1), "the nearest that works is 4"),
    ):
        with pytest.raises(UserError, match=part):
            predict(shape, layout, cluster)
