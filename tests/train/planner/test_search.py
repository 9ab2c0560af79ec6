"""The search: what it chooses, that losses feed back, and that limits bind."""

import json
import time
from functools import cache
from pathlib import Path

import pytest

from isthmus.config import compose
from isthmus.data.config import DataConfig
from isthmus.errors import UserError
from isthmus.parallelism.sites.validate import validate_sync
from isthmus.parallelism.topology import build_topology, validate_batch, validate_layout, validate_model
from isthmus.train.config import Config
from isthmus.train.planner import curves
from isthmus.train.planner.accelerators import CPU, H100
from isthmus.train.planner.candidates import Candidate, pareto
from isthmus.train.planner.cluster import Cluster, Link, Site
from isthmus.train.planner.laws import BESIROGLU
from isthmus.train.planner.overlay import overlay
from isthmus.train.planner.plan import Plan, make_plan, summary
from isthmus.train.planner.question import Question
from isthmus.train.planner.search import refine, search, subsets, sync_options

_LINKS = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 0), (0, 4), (2, 6)]


def _two(gbps: float, count: int = 512) -> Cluster:
    sites = [Site(name=name, accelerator=H100, count=count, storage_bytes_per_second=2e11) for name in ("a", "b")]
    return Cluster(sites=sites, links=[Link(ends=("a", "b"), bytes_per_second=gbps * 1e9 / 8, price_per_gigabyte=0.01)])


def _one(count: int = 256) -> Cluster:
    return Cluster(sites=[Site(name="main", accelerator=H100, count=count)])


def _ask(**given: object) -> Question:
    return Question(law=BESIROGLU, unique_tokens=given.pop("unique_tokens", {}), **given)  # type: ignore[arg-type]


@cache
def _plan(gbps: float) -> Plan:
    return make_plan(_ask(days=20.0), _two(gbps))


def _valid(candidate: Candidate) -> None:
    """The candidate fits memory, batch and accelerators, and its money adds up."""
    layout, sites = candidate.layout, len(candidate.cluster.sites)
    assert candidate.prediction.fits
    assert all(layout.ranks <= site.count for site in candidate.cluster.sites)
    assert layout.global_batch % (layout.micro_batch * layout.data * sites) == 0
    assert candidate.cost == candidate.compute_cost + candidate.link_cost + candidate.data_cost
    assert candidate.steps * layout.global_batch * layout.sequence_length >= candidate.tokens


def test_days_are_used_up_and_more_of_them_buy_a_lower_loss() -> None:
    short, long = search(_ask(days=5.0), _one())[0], search(_ask(days=20.0), _one())[0]
    assert short.days == pytest.approx(5.0, rel=0.01)
    assert long.days == pytest.approx(20.0, rel=0.01)
    assert long.loss < short.loss
    assert long.shape.params > short.shape.params
    for candidate in (short, long):
        _valid(candidate)


def test_a_thin_link_leads_to_local_sync_or_one_site_and_a_wide_one_may_be_exact() -> None:
    thin, wide = _plan(0.5), _plan(20_000)
    assert thin.chosen.sync.kind == "local" or len(thin.chosen.site_names) == 1
    exact = [entry for entry in (wide.chosen, *wide.alternatives) if entry.sync.kind == "exact"]
    assert exact
    assert exact[0].prediction.utilisation > 0.9
    starved = [entry for entry in thin.alternatives if entry.sync.kind == "exact"]
    assert starved
    assert starved[0].prediction.utilisation < 0.1
    for entry in (thin.chosen, *thin.alternatives, *wide.alternatives):
        _valid(entry)


def test_lost_efficiency_moves_the_plan() -> None:
    """At equal days: exposed links, then failures, each leave less compute, hence a smaller model on fewer tokens."""
    exact = next(sync for sync in sync_options(2) if sync.kind == "exact" and sync.wire == "bf16")
    thin, wide = (refine(_ask(days=20.0), next(subsets(_two(gbps))), exact) for gbps in (20.0, 20_000.0))
    assert thin.prediction.utilisation < wide.prediction.utilisation
    assert thin.training_flops < 0.7 * wide.training_flops
    assert thin.shape.params < wide.shape.params
    frail = Cluster(sites=[Site(name="main", accelerator=H100, count=256, hours_between_failures=200.0)])
    sound, failing = search(_ask(days=20.0), _one())[0], search(_ask(days=20.0), frail)[0]
    assert failing.reliability.goodput < sound.reliability.goodput - 0.05
    assert failing.training_flops < sound.training_flops
    assert failing.loss > sound.loss


def test_a_flop_budget_pays_for_what_failures_waste() -> None:
    often, slow = {"hours_between_failures": 500.0}, {"storage_bytes_per_second": 1e9}
    frail = Cluster(sites=[Site(name="main", accelerator=H100, count=256, **often, **slow)])
    sound, failing = search(_ask(flops=1e23), _one())[0], search(_ask(flops=1e23), frail)[0]
    assert sound.training_flops == pytest.approx(1e23, rel=0.01)
    assert failing.training_flops == pytest.approx(1e23 * (1 - failing.lost_share), rel=0.02)
    assert failing.lost_share > 0.05


def test_measured_sync_penalty_lowers_the_effective_compute() -> None:
    local = next(sync for sync in sync_options(2) if sync.kind == "local")
    free = refine(_ask(flops=1e23, sync_penalty=0.0), next(subsets(_two(10.0))), local)
    dear = refine(_ask(flops=1e23, sync_penalty=0.01), next(subsets(_two(10.0))), local)
    assert dear.loss == pytest.approx(1.01 * free.loss, rel=0.003)
    assert dear.effective_flops < 0.8 * free.effective_flops
    assert free.effective_flops == pytest.approx(free.training_flops, rel=0.02)


def test_other_sizes_stand_beside_the_best_and_do_not_replace_it() -> None:
    found = search(_ask(flops=1e23), _one())
    ratios = [entry.tokens / entry.shape.params for entry in found]
    assert max(ratios) > 2.5 * ratios[0]
    assert min(ratios) < ratios[0] / 2.5
    assert all(entry.loss > found[0].loss for entry in found[1:])
    served = search(_ask(flops=1e23, inference_tokens=1e13), _one())
    assert served[0].shape.params < 0.7 * found[0].shape.params
    reached = search(_ask(loss=2.1), _one())
    assert all(entry.loss == pytest.approx(2.1, rel=0.01) for entry in reached)


def test_cost_can_be_preferred_and_nothing_beats_the_front() -> None:
    cheap = search(_ask(flops=1e23, prefer_cost=True), _two(5.0))
    fast = search(_ask(flops=1e23), _two(5.0))
    assert cheap[0].cost / cheap[0].effective_flops <= min(c.cost / c.effective_flops for c in cheap) * 1.006
    assert fast[0].speed >= max(candidate.speed for candidate in fast) * 0.994
    front = pareto(fast)
    assert front
    for entry in front:
        assert not any(c.days < entry.days and c.cost < entry.cost and c.loss < entry.loss for c in fast)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"flops": 1e24, "max_days": 1.0}, r"plan.max_days=1: the soonest plan takes .* days; plan.flops=.* would fit"),
        ({"flops": 1e24, "max_cost": 100.0}, r"plan.max_cost=100: the cheapest plan costs .*; plan.flops=.* would fit"),
        ({"params": 2e12}, r"fit no layout of 248 accelerators.*\d+ accelerators a site would do"),
        ({"params": 1e5}, "choose .* parameters or more"),
        ({"params": 7e9, "max_params": 1e9}, "plan.max_params"),
    ],
)
def test_what_does_not_fit_says_what_would(given: dict[str, float], part: str) -> None:
    with pytest.raises(UserError, match=part):
        search(_ask(**given), _one())


def test_the_suggested_number_of_accelerators_does_work() -> None:
    with pytest.raises(UserError) as caught:
        search(_ask(params=1e12), _one(8))
    count = int(str(caught.value).split("; ")[1].split()[0])
    assert search(_ask(params=1e12), _one(count))


def test_a_large_plan_is_quick() -> None:
    """1e26 FLOPs over 8 sites with 10 links: seconds of one core. The bound is three times what it takes."""
    sites = [Site(name=f"site{i}", accelerator=H100, count=16_384 if i < 5 else 8192) for i in range(8)]
    links = [Link(ends=(f"site{a}", f"site{b}"), bytes_per_second=50e9, rtt_seconds=0.03) for a, b in _LINKS]
    started = time.process_time()
    found = search(_ask(flops=1e26), Cluster(sites=sites, links=links))
    assert time.process_time() - started < 10.0
    _valid(found[0])
    assert found[0].shape.params > 1e11


@pytest.mark.parametrize("gbps", [0.5, 20_000])
def test_overlays_are_what_train_accepts(gbps: float, tmp_path: Path) -> None:
    plan = _plan(gbps)
    path = tmp_path / "plan.yaml"
    path.write_text(overlay(plan, compose(Config, "train", []).data))
    config = compose(Config, "train", [f"experiment={path}"])
    layout = plan.chosen.layout
    validate_model(config.model)
    topology = build_topology(config.parallel, layout.ranks)
    assert topology.data == layout.data
    validate_layout(config.model, config.parallel, config.train.sequence_length)
    validate_sync(config.sync, config.model, config.parallel)
    sites = len(plan.chosen.site_names)
    passes = validate_batch(topology, config.train.global_batch, config.train.micro_batch, shares=(1,) * sites)
    assert passes == plan.chosen.prediction.microbatches
    assert config.train.steps == plan.chosen.steps


def test_the_overlay_has_checkpoints_where_the_schema_does_and_the_users_own_sources() -> None:
    plan = make_plan(_ask(flops=1e22, unique_tokens={"pages": 2e11, "code": 1e9}), _one())
    text = overlay(plan, DataConfig(), {"checkpoint.every_steps"})
    assert "checkpoint:\n  every_steps: " in text
    assert "checkpoint:" not in overlay(plan, DataConfig(), set())
    assert "override /data: none" in text
    assert plan.mixture["code"][1] == pytest.approx(4.0)  # passes, at most
    assert sum(share for share, _ in plan.mixture.values()) == pytest.approx(1.0)


def test_a_users_mixture_goes_into_the_overlay(tmp_path: Path) -> None:
    mix = tmp_path / "mix.yaml"
    mix.write_text("sources:\n  pages: {path: /pages, weight: 3}\n  code: {path: /code}\nvocab_size: 700\n")
    plan = make_plan(_ask(flops=1e22, unique_tokens={"pages": 2e11, "code": 1e9}), _one())
    path = tmp_path / "plan.yaml"
    path.write_text(overlay(plan, compose(Config, "train", [f"data={mix}"]).data))
    data = compose(Config, "train", [f"experiment={path}"]).data
    assert set(data.sources) == {"pages", "code"}
    assert data.sources["pages"].path == "/pages"
    assert data.sources["code"].weight == pytest.approx(plan.mixture["code"][0], rel=1e-3)
    assert data.vocab_size == 700


def test_the_answer_is_plain_json_with_its_assumptions_and_doubts() -> None:
    content = json.loads(json.dumps(summary(_plan(0.5))))
    assert content["chosen"]["prediction"]["memory_bytes"]["total"] > 0
    assert content["loss_interval_95"][0] < content["chosen"]["loss"] < content["loss_interval_95"][1]
    assert any("extrapolating by" in warning for warning in content["warnings"])
    assert any("arXiv 2404.10102" in line for line in content["assumptions"])
    assert {entry["law"] for entry in content["laws"]} >= {"besiroglu", "hoffmann-1", "deepseek"}


def test_copying_data_to_other_sites_is_priced() -> None:
    both = next(entry for entry in (_plan(0.5).chosen, *_plan(0.5).alternatives) if len(entry.site_names) == 2)
    assert both.data_cost == pytest.approx(both.tokens * 4 / 1e9 * 0.01)
    assert both.data_hours == pytest.approx(both.tokens * 4 / (0.5e9 / 8) / 3600)


def test_curves_of_the_report() -> None:
    plan = _plan(0.5)
    sizes = curves.losses_over_size(plan)["besiroglu"]
    assert len(sizes.low) == len(sizes.x)
    lowest = sizes.x[sizes.y.index(min(sizes.y))]
    assert lowest == pytest.approx(BESIROGLU.optimum(plan.chosen.training_flops)[0], rel=0.15)
    for curve in curves.utilisations(plan).values():
        assert all(b >= a - 1e-12 for a, b in zip(curve.y, curve.y[1:], strict=False))
    best = curves.goodputs(plan.chosen.reliability)
    assert max(best.y) == pytest.approx(plan.chosen.reliability.goodput, rel=0.005)
    single = make_plan(_ask(params=2e5, tokens_per_parameter=1, vocabulary=512, sequence_length=128, precision="fp32"),
                       Cluster(sites=[Site(name="main", accelerator=CPU, count=1)]))  # fmt: skip
    assert len(curves.utilisations(single)) >= 4
