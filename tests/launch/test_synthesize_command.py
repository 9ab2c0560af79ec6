"""`isthmus data synthesize` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.ranks import isthmus_cli

from isthmus.config import compose
from isthmus.data.synthetic.config import SynthesizeConfig
from isthmus.data.synthetic.plan import plan_synthesis
from isthmus.data.synthetic.registry import RECIPES, SEEDS, VERIFIERS, load
from isthmus.launch.data.synthesize import _with_recipe, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_composes_and_has_items(name: str, tmp_path: Path) -> None:
    config = compose(SynthesizeConfig, "synthesize", _with_recipe([f"data={name}", f"out={tmp_path}/out"]))
    plan = plan_synthesis(config, secrets={})
    assert next(iter(plan.rules.recipe.items())).id
    plan.close()


def test_every_name_of_the_registry_can_be_loaded() -> None:
    for entry in RECIPES.values():
        assert load(entry.recipe).name
        assert load(entry.options)()
        assert entry.seeds is None or entry.seeds in SEEDS
    for target in (*SEEDS.values(), *VERIFIERS.values()):
        assert callable(load(target))


def test_a_shipped_recipe_runs_from_the_command_line(tmp_path: Path) -> None:
    words = ["data", "synthesize", "data=mathematics", "out=out", "data.items=6"]
    # A process of its own: it starts workers, which the harness's own processes may not.
    command = [sys.executable, "-m", "isthmus.launch.cli", *words, "workers=1", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["documents"] == found["accepted"] == 6
    assert found["spent"]["requests"] == 6
    assert "nothing was held against one" in result.stderr
    again = isthmus_cli(*words, cwd=tmp_path)
    assert "it was there already" in again.out
    inspected = isthmus_cli("data", "inspect", "out", "--sample", "1", "--verify", "--json", cwd=tmp_path)
    assert json.loads(inspected.out)["sample"][0]["lineage"]["about"]["recipe"] == "mathematics 1"


def test_help_names_recipes_keys_and_options() -> None:
    shown = isthmus_cli("data", "synthesize", "--help")
    assert shown.code == 0
    for word in (
        *shipped_recipes(),
        "data.generator.requests_per_minute",
        "data.options.buckets",
        "members.NAME.rubric",
    ):
        assert word in shown.out


FILE = {"recipe": "mathematics", "items": 3}
REFUSED: dict[str, tuple[dict, list[str], str]] = {
    "no data": ({}, ["out=x"], "data=: is not given"),
    "unknown recipe": ({}, ["data=poetry", "out=x"], "data=: there is no recipe 'poetry'"),
    "no out": (FILE, ["data=r.yaml"], "out: is not given"),
    "recipe": ({"recipe": "maths"}, ["data=r.yaml", "out=x"], "data.recipe: there is no 'maths'"),
    "no recipe": ({"items": 3}, ["data=r.yaml", "out=x"], "data.recipe: is not given"),
    "key": ({**FILE, "itmes": 3}, ["data=r.yaml", "out=x"], "did you mean"),
    "option": ({**FILE, "options": {"lvels": [1]}}, ["data=r.yaml", "out=x"], "data.options: there is no key 'lvels'"),
    "type": ({**FILE, "options": {"levels": "high"}}, ["data=r.yaml", "out=x"], "data.options"),
    "kind": ({**FILE, "options": {"kinds": ["knots"]}}, ["data=r.yaml", "out=x"], "there is no kind 'knots'"),
    "items": ({**FILE, "items": 0}, ["data=r.yaml", "out=x"], "data.items: is 0"),
    "keep": ({**FILE, "keep": 2}, ["data=r.yaml", "out=x"], "data.keep: is 2"),
    "price": ({**FILE, "budget": {"cost": 1}}, ["data=r.yaml", "out=x"], "nothing has a price"),
    "seeds": ({**FILE, "seeds": {"path": "x"}}, ["data=r.yaml", "out=x"], "data.seeds.path: would do nothing"),
    "embedded": ({"recipe": "rephrase", "seeds": {"path": "x"}}, ["data=r.yaml", "out=x"], "pages is embedded"),
    "seed kind": (
        {"recipe": "rephrase", "seeds": {"kind": "x"}},
        ["data=r.yaml", "out=x"],
        "data.seeds.kind: there is no 'x'",
    ),
    "verifier": ({**FILE, "verifiers": ["x"]}, ["data=r.yaml", "out=x"], "data.verifiers: there is no 'x'"),
    "calibrate": (FILE, ["data=r.yaml", "out=x", "--calibrate", "l.jsonl"], "name the judges to calibrate"),
    "benchmarks": ({**FILE, "decontaminate": {"files": ["b.txt"]}}, ["data=r.yaml", "out=x"], "cannot be read"),
    "server": ({**FILE, "generator": {"kind": "http"}}, ["data=r.yaml", "out=x"], "data.generator.url: is not given"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_get_one_line_and_exit_code_2(case: str, tmp_path: Path) -> None:
    content, words, expected = REFUSED[case]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    result = isthmus_cli("data", "synthesize", *words, cwd=tmp_path)
    assert result.code == 2, result.out + result.err
    assert expected in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "x/manifest.json").exists()
