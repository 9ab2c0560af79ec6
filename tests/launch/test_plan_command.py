"""`isthmus plan` as a user meets it: what it answers, what it refuses, and that its files train."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.planner import DATA, needs_data
from support.ranks import isthmus_cli

from isthmus.config import compose, groups
from isthmus.errors import UserError
from isthmus.launch.plan.calibrate import cpu_matmul, fit_step, gpu_matmul_efficiency
from isthmus.launch.plan.command import main
from isthmus.train.planner import predict
from isthmus.train.planner.accelerators import A100, CPU
from isthmus.train.planner.cluster import Cluster, Site
from isthmus.train.planner.config import PlanRunConfig
from isthmus.train.planner.constants import A100_CONSTANTS, constants_of
from isthmus.train.planner.kernels import Device
from isthmus.train.planner.laws import BESIROGLU
from isthmus.train.planner.resolve import cluster_of, law_of_name, layout_of, read_profile, shape_of_config

_SITES = """\
sites:
  oregon: {accelerator: h100, count: 256, price_per_hour: 2.2}
  iowa: {accelerator: h100, count: 256}
  dublin: {accelerator: h100, count: 128}
links:
  - {between: [oregon, iowa], bandwidth_gbps: 100, rtt_ms: 36, price_per_gb: 0.002}
  - {between: [iowa, dublin], bandwidth_gbps: 40, rtt_ms: 95, price_per_gb: 0.01}
"""
_SMALL = ["cluster=cpu", "cluster.sites.main.count=1", "plan.vocab_size=512"]

REFUSED = {
    "nothing": ([], "plan.flops=1e24"),
    "two givens": (["plan.flops=1e24", "plan.days=3"], "plan.flops and plan.days are given"),
    "negative": (["plan.flops=-1"], "plan.flops: is -1; it must be positive"),
    "zero": (["plan.days=0", "cluster.sites.main.count=8"], "plan.days: is 0"),
    "not a number": (["plan.flops=nan"], "plan.flops: is nan"),
    "infinite": (["plan.loss=inf"], "plan.loss: is inf"),
    "unknown key": (["plan.fops=1"], "did you mean 'plan.flops'?"),
    "a key that the plan chooses": (["plan.flops=1e20", "model.num_layers=4"], "model.num_layers=4: would do nothing"),
    "days of nobody": (["plan.days=30"], "cluster.sites.main.count=1024"),
    "no memory": (["plan.flops=1e24", "cluster.sites.main.count=8"], "32 accelerators a site would do"),
    "out of reach": (["plan.loss=1.8"], "the best is 1.81"),
    "unknown law": (["plan.flops=1e20", "plan.law=mine"], "plan.law: there is no 'mine'; choose besiroglu"),
    "law file": (["plan.flops=1e20", "plan.law=absent.json"], "make one with: isthmus plan fit"),
    "unknown accelerator": (["plan.flops=1e20", "cluster.sites.main.accelerator=h101"], "choose one of: a100"),
    "zero memory": (["plan.flops=1e20", "cluster.sites.main.memory_gb=0"], "memory_gb: is 0"),
    "tokens": (["plan.flops=1e20", "plan.unique_tokens=many"], "give a number of tokens"),
    "no tokens": (["plan.flops=1e20", "plan.unique_tokens={web:0}"], "plan.unique_tokens.web: is 0"),
    "sub-verb": (["forecast"], "predict, fit, calibrate"),
    "fit without a file": (["fit"], "give one CSV file"),
    "fit of nothing": (["fit", "absent.csv"], "absent.csv: cannot be read"),
    "calibrate": (["calibrate", "--link", "fast"], "--link: is 'fast'"),
    "predict": (["predict", "plan.flops=1e24"], "plan.flops=1e24: would do nothing"),
    "predict tensor": (["predict", "model=8b", "parallel.tensor=3"], "parallel: tensor 3"),
    "predict layers": (
        ["predict", "model=8b", "parallel.pipeline=5", "cluster.sites.main.count=5"],
        "the nearest divisor is 4",
    ),
    "predict batch": (["predict", "model=8b", "train.global_batch=9"], "the nearest that works is 8"),
    "predict sites": (["predict", "model=8b", "sync=local"], "sync=local: there is one site"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_gets_one_line_and_exit_code_2(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = REFUSED[case]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("isthmus: ")
    assert expected in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("links:", "links: []\nunused:", "'unused'"),
        ("between: [oregon, iowa]", "between: [oregon, rome]", "there is no site 'rome'"),
        ("between: [iowa, dublin]", "between: [iowa, oregon]", "have one already"),
        ("between: [iowa, dublin]", "between: [iowa, iowa]", "write between: [A, B]"),
        ("bandwidth_gbps: 100", "bandwidth_gbps: 0", "bandwidth_gbps: is 0"),
        ("bandwidth_gbps: 100", "bandwidth_gbps: -3", "bandwidth_gbps: is -3"),
        ("count: 128", "count: -1", "cluster.sites.dublin.count: is -1"),
        (
            "  - {between: [iowa, dublin], bandwidth_gbps: 40, rtt_ms: 95, price_per_gb: 0.01}\n",
            "",
            "from dublin to oregon; add {between: [dublin, oregon], bandwidth_gbps: 10} or leave dublin out",
        ),
    ],
)
def test_bad_clusters_get_one_line(old: str, new: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "sites.yaml"
    path.write_text(_SITES.replace(old, new))
    with pytest.raises(UserError) as caught:
        cluster_of(compose(PlanRunConfig, "plan", [f"cluster={path}"]).cluster)
    assert part in str(caught.value)


def test_sites_without_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sites.yaml"
    path.write_text(_SITES[: _SITES.index("links:")])
    with pytest.raises(UserError, match=r"3 sites and no link; add \{between: \[oregon, iowa\]"):
        cluster_of(compose(PlanRunConfig, "plan", [f"cluster={path}"]).cluster)


@pytest.mark.parametrize("preset", groups()["cluster"])
def test_every_preset_composes_and_predicts(preset: str) -> None:
    config = compose(PlanRunConfig, "plan", [f"cluster={preset}", "model=tiny", "train.global_batch=128"])
    cluster = cluster_of(config.cluster)
    prediction = predict(shape_of_config(config), layout_of(config, cluster), cluster)
    assert cluster.sites[0].accelerator.name == preset
    assert 0 < prediction.mfu < 1


def test_train_knows_nothing_of_clusters() -> None:
    assert "cluster" not in groups("train")
    assert "cluster" in groups("plan")


def test_predict_answers_in_json_without_torch(tmp_path: Path) -> None:
    (tmp_path / "sites.yaml").write_text(_SITES)
    words = ["plan", "predict", "--json", "model=8b", "parallel.tensor=2", "cluster=sites.yaml", "sync=local"]
    batch = ["train.global_batch=384", "train.sequence_length=8192"]
    program = "import sys; from isthmus.launch.cli import main; code = main(sys.argv[1:])"
    program += "; assert 'torch' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", f"{program}; sys.exit(code)", *words, *batch],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["ranks_per_site"] == 128  # the smallest site's
    assert answer["step_seconds"] == pytest.approx(sum(answer["parts_seconds"].values()))
    assert answer["memory_bytes"]["fragments"] > 0
    assert answer["sent_bytes"] == pytest.approx(4 / 3 * answer["params"] * 4.125 / 8 / 30)
    assert "prediction" in result.stderr


def test_a_plan_writes_an_experiment_that_trains_a_json_and_a_report(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--json", "plan.params=2e5", "plan.tokens_per_parameter=0.1", *_SMALL]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["experiment"] == "plan/plan.yaml"
    assert json.loads((tmp_path / "plan/plan.json").read_text())["chosen"] == answer["chosen"]
    page = (tmp_path / "plan/report.html").read_text()
    assert page.count('class="chart"') == 8
    assert "<script src" not in page  # one file, that needs no network
    result = isthmus_cli("train", "--json", "experiment=plan/plan.yaml", f"data.cache_dir={shared_cache}", cwd=tmp_path)
    assert result.code == 0, result.err
    outcome = json.loads(result.out)
    assert outcome["status"] == "completed"
    assert outcome["step"] == answer["chosen"]["steps"]
    assert outcome["tokens"] == pytest.approx(answer["chosen"]["tokens"], rel=0.1)


def test_a_fitted_law_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["params,tokens,loss"]
    for n in (1e7, 3e7, 1e8, 3e8, 1e9):
        rows += [f"{n},{r * n},{BESIROGLU.loss(n, r * n) * (1 + 1e-4 * (r % 3))}" for r in (5, 20, 80, 200)]
    (tmp_path / "points.csv").write_text("\n".join(rows))
    assert main(["fit", "points.csv", "--out", "mine.json", "--samples", "8", "--json"]) == 0
    fitted = json.loads(capsys.readouterr().out)
    assert fitted["alpha"] == pytest.approx(BESIROGLU.alpha, rel=0.05)
    law = law_of_name("mine.json")
    assert law.optimum(1e22) == pytest.approx(BESIROGLU.optimum(1e22), rel=0.15)
    assert len(law.samples) == 8
    assert main(["plan.flops=1e22", "plan.law=mine.json", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["laws"][0]["law"] == "mine"
    assert any("fitted to runs of up to" in warning for warning in answer["warnings"])


@needs_data
def test_fit_reads_the_published_points(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [str(DATA / "chinchilla_points.csv"), "--drop-highest", "5", "--samples", "4", "--out", str(tmp_path / "l")]
    assert main(["fit", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objective"] == pytest.approx(0.0010183, abs=5e-8)


def test_a_profile_replaces_the_data_sheet(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"accelerator": {"fp32_flops": 1e11}, "constants": {"matmul_efficiency": 0.5}}))
    sheet, constants = read_profile(path, CPU, constants_of(CPU))
    assert sheet.fp32_flops == 1e11
    assert constants.matmul_efficiency == 0.5
    for text, part in (
        ("{}", "is no profile"),
        ('{"accelerator": {"speed": 1}, "constants": {}}', "no accelerator.speed"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=part):
            read_profile(path, CPU, constants_of(CPU))


def test_calibration_finds_the_constants_again() -> None:
    shapes = [(256, 512, 128), (1024, 1024, 1024), (128, 128, 128), (2048, 512, 256)]
    on_cpu = [{"m": m, "n": n, "k": k, "seconds": 2 * m * n * k / (0.8 * 1e11) + 3e-5} for m, n, k in shapes]
    efficiency, fixed = cpu_matmul(on_cpu, 1e11)
    assert (efficiency, fixed) == pytest.approx((0.8, 3e-5), rel=1e-6)
    device = Device(A100, A100_CONSTANTS, "bf16")
    on_gpu = [{"m": m, "n": n, "k": k, "seconds": device.matmul(m, n, k)} for m, n, k in [(8192, 8192, 8192)] * 3]
    found = gpu_matmul_efficiency(on_gpu, A100, A100_CONSTANTS, "bf16")
    assert found == pytest.approx(A100_CONSTANTS.matmul_efficiency, rel=0.01)


@pytest.mark.parametrize("factor", [0.9, 3.0])
def test_a_measured_step_is_predicted(factor: float) -> None:
    config = compose(PlanRunConfig, "plan", ["model=nano", "train.precision=fp32", "train.sequence_length=128"])
    shape, cluster = shape_of_config(config), Cluster(sites=[Site(name="main", accelerator=CPU, count=1)])
    layout = layout_of(config, cluster)
    before = predict(shape, layout, cluster).step_seconds
    constants = fit_step(config, shape, CPU, constants_of(CPU), factor * before)
    site = Site(name="main", accelerator=CPU, count=1, constants=constants)
    assert predict(shape, layout, Cluster(sites=[site])).step_seconds == pytest.approx(factor * before, rel=1e-3)


@pytest.mark.slow
def test_calibrate_measures_this_machine(tmp_path: Path) -> None:
    words = ["plan", "calibrate", "--json", "--out", "p.json", "--seconds", "0.02", "--ranks", "1", "--no-steps"]
    result = isthmus_cli(*words, "model=nano", cwd=tmp_path)
    assert result.code == 0, result.err
    profile = json.loads(result.out)
    assert profile["accelerator"]["fp32_flops"] > 1e9
    assert profile["measured"]["copy_bytes_per_second"] > 1e8
    predicted = isthmus_cli(
        "plan", "predict", "--json", "model=nano", "train.precision=fp32", "cluster=cpu", "train.sequence_length=128",
        "cluster.sites.main.profile=p.json", "cluster.sites.main.count=1", cwd=tmp_path,
    )  # fmt: skip
    assert predicted.code == 0, predicted.err
    assert json.loads(predicted.out)["step_seconds"] > 0


@pytest.mark.slow
def test_a_plan_for_two_sites_trains_in_the_lab_as_it_is(tmp_path: Path, shared_cache: Path) -> None:
    (tmp_path / "two.yaml").write_text(
        "sites:\n  east: {accelerator: cpu, count: 1}\n  west: {accelerator: cpu, count: 1}\n"
        "links:\n  - {between: [east, west], bandwidth_gbps: 0.02, rtt_ms: 20}\n"
    )
    words = ["--json", "cluster=two.yaml", "plan.params=2e5", "plan.tokens_per_parameter=0.1", "plan.vocab_size=512"]
    planned = isthmus_cli("plan", *words, cwd=tmp_path)
    assert planned.code == 0, planned.err
    chosen = json.loads(planned.out)["chosen"]
    assert chosen["sites"] == ["east", "west"]
    lab = ["lab", "--json", "experiment=plan/plan.yaml", "lab.shape=none", f"data.cache_dir={shared_cache}"]
    result = isthmus_cli(*lab, cwd=tmp_path)
    assert result.code == 0, result.err
    assert json.loads(result.out)["total"]["step"] == chosen["steps"]
