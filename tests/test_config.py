"""Composition: every shipped choice, the user's own files, and what a user reads after a mistake."""

from functools import cache
from pathlib import Path

import pytest

from isthmus.config import compose, groups, keys_of, load_resolved, to_yaml
from isthmus.errors import UserError
from isthmus.parallelism.config import Precision
from isthmus.parallelism.flops import count_parameters
from isthmus.train.config import Config, Device, ScheduleKind, run_name

_CHOICES = [(group, choice) for group, choices in groups("train").items() for choice in choices]
_MIX = "sources:\n  web: {weight: 3}\n  notes: {path: /notes, weight: 1, max_epochs: 2}\n"


@cache
def _compose(*overrides: str) -> Config:
    return compose(Config, "train", overrides)


def _refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        _compose(*overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_groups_hold_the_choices_that_scripts_rely_on() -> None:
    # DESIGN.md, "Config keys that other people's scripts rely on"
    found = groups()
    assert {"nano", "tiny", "124m", "1b", "8b", "70b", "405b"} <= set(found["model"])
    assert {"cosine", "wsd", "constant"} <= set(found["schedule"])
    assert "smoke" in found["experiment"]
    assert "adamw" in found["optim"]
    assert "embedded" in found["data"]


@pytest.mark.parametrize(("group", "choice"), _CHOICES)
def test_every_choice_composes_and_means_what_it_says(group: str, choice: str) -> None:
    config = _compose(f"{group}={choice}")
    if group == "model":
        assert config.model.name == choice
    if group == "schedule":
        assert config.schedule.kind is ScheduleKind[choice]
    assert config.data.sources or choice == "none"


@pytest.mark.parametrize(
    ("choice", "parameters", "relative"),
    [
        ("nano", 1e6, 0.15),  # DESIGN.md: about 1M
        ("tiny", 11e6, 0.05),  # DESIGN.md: about 11M
        ("124m", 124e6, 0.01),  # GPT-2 small, Radford et al. 2019 (as counted by Karpathy's nanoGPT)
        ("1b", 1.24e9, 0.005),  # Meta's model card of Llama 3.2 1B
        ("8b", 8.03e9, 0.005),  # Meta's model card of Llama 3.1 8B
        ("70b", 70.6e9, 0.005),  # Meta's model card of Llama 3.1 70B
        ("405b", 405.9e9, 0.005),  # safetensors index of Llama 3.1 405B
    ],
)
def test_presets_have_the_published_sizes(choice: str, parameters: float, relative: float) -> None:
    assert count_parameters(_compose(f"model={choice}").model) == pytest.approx(parameters, rel=relative)


def test_every_key_has_a_help_text() -> None:
    keys = list(keys_of(Config))
    assert {"train.steps", "model.num_layers", "run.dir"} <= {name for name, _, _ in keys}
    assert [name for name, _, text in keys if not text.strip()] == []


def test_overrides_are_typed() -> None:
    config = _compose("train.device=cpu", "train.precision=bf16", "train.steps=5", "optim.learning_rate=1e-3")
    assert config.train.device is Device.cpu
    assert config.train.precision is Precision.bf16
    assert (config.train.steps, config.optim.learning_rate) == (5, 0.001)


@pytest.mark.parametrize("name", ["mix.yaml", "mix.yml", "my mix.yaml", "embedded.yaml"])
def test_data_file_of_the_user_replaces_the_group(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, _MIX)
    config = _compose(f"data={path}", "data.sources.web.weight=9", "data.held_out=0.1")
    assert {name: source.weight for name, source in config.data.sources.items()} == {"web": 9.0, "notes": 1.0}
    assert config.data.sources["notes"].max_epochs == 2.0
    assert config.data.held_out == 0.1


@pytest.mark.parametrize("name", ["mix(1).yaml", "mix=a.yaml"])  # the first is what a browser calls a second download
def test_data_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / name, _MIX)
    assert set(_compose(f"data={path}").data.sources) == {"web", "notes"}


def test_an_override_cannot_add_a_source_and_says_what_can() -> None:
    assert "data=my/mix.yaml" in _refusal("+data.sources.mine.path=/notes")


def test_experiment_file_of_the_user_and_overrides_that_win(tmp_path: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /model: tiny\ntrain: {steps: 7, seed: 3}\n"
    path = _write(tmp_path / "x.yaml", text)
    plain = _compose(f"experiment={path}")
    assert (plain.model.name, plain.train.steps, plain.train.seed) == ("tiny", 7, 3)
    overridden = _compose("model=nano", "train.steps=9", f"experiment={path}")
    assert (overridden.model.name, overridden.train.steps, overridden.train.seed) == ("nano", 9, 3)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stepz=3", ["'train.stepz'", "did you mean 'train.steps'?"]),
        ("optim.learning_rat=1", ["did you mean 'optim.learning_rate'?"]),
        ("train.steps=abc", ["train.steps: ", "'abc'", "Integer"]),
        ("train.steps=1.5", ["train.steps: ", "'1.5'"]),
        ("train.device=gpu", ["train.device: ", "auto, cpu, cuda"]),
        ("model.num_layers=null", ["model.num_layers", "not Optional"]),
        ("model=huge", ["model=: there is no 'huge'", "choose one of", "124m, 1b", "nano"]),
        ("experiment=nope", ["experiment=: there is no 'nope'", "smoke"]),
        ("+model.x=1", ["'x'", "override"]),
        ("+nothing=1", ["'nothing'"]),
        ("data=/no/such/mix.yaml", ["data=: there is no file /no/such/mix.yaml"]),
        ("train.steps=[1", ["override: ", "KEY=VALUE"]),
        ("train.steps", ["train.steps", "KEY=VALUE"]),
    ],
)
def test_mistakes_are_explained_in_one_line(override: str, parts: list[str]) -> None:
    line = _refusal(override)
    assert [part for part in parts if part not in line] == [], line


def test_unknown_key_in_a_file_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "mix.yaml", "held_uot: 0.1\n" + _MIX)
    assert "'held_uot'" in _refusal(f"data={path}")


def test_wrong_value_in_a_file_names_the_file_the_key_and_the_value(tmp_path: Path) -> None:
    path = _write(tmp_path / "mix.yaml", "held_out: much\n" + _MIX)
    refusal = _refusal(f"data={path}")
    assert f"{path}: data.held_out: " in refusal
    assert "'much'" in refusal


@pytest.mark.parametrize("text", ["sources: {web: [1\n", "sources:\n\tweb: 1\n"])
def test_malformed_file_is_named(tmp_path: Path, text: str) -> None:
    path = _write(tmp_path / "mix.yaml", text)
    line = _refusal(f"data={path}")
    assert "mix.yaml" in line
    assert "isthmus-config-" not in line, "that folder is gone: name the user's file"


def test_file_that_is_a_list_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "mix.yaml", "- web\n- notes\n")
    assert "mix.yaml" in _refusal(f"data={path}")


def test_resolved_file_reads_back_equal(tmp_path: Path) -> None:
    config = _compose("model=nano-moe", "train.steps=5", "train.precision=bf16", "data.sources.web.max_epochs=1.5")
    path = _write(tmp_path / "config.yaml", to_yaml(config))
    assert load_resolved(Config, path) == config


@pytest.mark.parametrize(
    ("text", "part"),
    [("nope: 1\n", "'nope'"), ("train: {steps: abc}\n", "train.steps"), ("- 1\n", "List")],
)
def test_resolved_file_is_checked(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        load_resolved(Config, _write(tmp_path / "config.yaml", text))


def test_resolved_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: there is no such file"):
        load_resolved(Config, tmp_path / "nothing.yaml")


def test_malformed_resolved_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_resolved(Config, _write(tmp_path / "config.yaml", "train: {steps: 1\n"))


def test_run_name_follows_the_composed_values_only() -> None:
    name = run_name(_compose("train.steps=5", "optim.learning_rate=0.001"))
    assert name.startswith("nano-")
    assert run_name(_compose("optim.learning_rate=1e-3", "train.steps=5", "run.dir=/elsewhere")) == name
    assert run_name(_compose("optim.learning_rate=0.002", "train.steps=5")) != name
    assert run_name(_compose("run.name=mine")) == "mine"
    assert run_name(_compose("experiment=smoke")).startswith("smoke-")
