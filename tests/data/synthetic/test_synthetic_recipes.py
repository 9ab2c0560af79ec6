"""Every recipe from end to end, without a model and with a server that fails in every way that passes."""

import contextlib
import json
from pathlib import Path
from random import Random

import pytest
from support.recipes import HTTP, RECIPES, load_recipe, result, rows, run, scripted_model, write_recipe
from support.scripted_server import ScriptedServer, many_faults

from isthmus.data.config import DataConfig, SourceConfig
from isthmus.data.corpus import build_corpus
from isthmus.data.shards.dataset import Dataset
from isthmus.data.synthetic.plan import plan_synthesis
from isthmus.data.synthetic.protocols import Candidate
from isthmus.errors import UserError

JUDGES = "judges: {members: {one: {}, two: {rubric: 'correctness and style, strictly'}}, rule: unanimity}\n"


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_a_model_it_gives_a_source_with_lineage(recipe: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe)
    outcome = run(path, tmp_path / "out")
    statistics = outcome.statistics
    assert outcome.finished
    assert statistics.items == load_recipe(path, tmp_path).data.items
    assert outcome.documents >= 0.6 * statistics.items, statistics.reasons
    dataset = Dataset(tmp_path / "out")
    assert not list(dataset.damaged())
    assert dataset.documents == outcome.documents
    name = recipe.replace("_", "-")
    assert dataset.manifest.kinds == {name: "synthetic"}
    about = json.loads(dataset.document(0).lineage["about"])
    assert about["recipe"] == f"{recipe} 1"
    assert about["generator"] == "template"
    assert len(about["generator_hash"]) == len(about["frozen"]) == 16
    assert about["prompt"]
    assert 0 <= about["seed"] < 2**31
    assert about["verdicts"]
    assert all(verdict["ok"] for verdict in about["verdicts"] if verdict["repairs"] == about["repairs"])
    if recipe not in ("mathematics", "code", "translation"):
        assert about["parents"]
    config = DataConfig(sources={"made": SourceConfig(path=str(tmp_path / "out"))}, cache_dir=str(tmp_path / "cache"))
    opened = build_corpus(config, 9000).sources["made"]
    assert opened.synthetic, "whatever the configuration calls it"
    again = run(path, tmp_path / "out")
    assert again.already
    assert again.documents == outcome.documents


@pytest.mark.parametrize("recipe", RECIPES)
def test_with_a_failing_server_and_judges(recipe: str, tmp_path: Path) -> None:
    plain = write_recipe(tmp_path, recipe, JUDGES)
    with ScriptedServer(scripted_model(plain), many_faults) as server:
        path = write_recipe(tmp_path, recipe, JUDGES, HTTP.format(url=server.url, parallel=4))
        outcome = run(path, tmp_path / "out")
    statistics = outcome.statistics
    assert outcome.finished
    assert max(server.answered.values()) == 1, "nothing is paid for twice"
    assert sum(server.answered.values()) == outcome.spent.requests
    assert len({"500", "429", "malformed", "cut"} & set(server.faults)) >= 3
    # Making an item of `translation` runs programs, and may take longer than an answer.
    assert (recipe != "translation") < server.most_at_once <= 4, (
        "the judges are the generator, and share what may be under way"
    )
    assert len({body["seed"] for body in server.bodies}) == len(server.attempts), "every request has its own seed"
    assert statistics.verified_first < statistics.tries, "a third of the answers was spoiled"
    if recipe != "long_context":
        assert statistics.repaired_verified > 0
        assert all(row["repairs"] or row["requests"][0]["purpose"] == "answer" for row in rows(tmp_path / "out"))
    assert statistics.judges["one"][0] == statistics.judges["two"][0] > 0
    assert statistics.accepted < statistics.verified or recipe == "long_context"
    assert sum(statistics.votes[("one", "two")]) == statistics.judges["one"][0]
    assert outcome.spent.tokens > statistics.kept_tokens > 0
    report = (tmp_path / "out/report.html").read_text()
    for words in ("Funnel", "Acceptance by topic", "kappa", "right after repair", "judged 0 in style"):
        assert words in report


def test_tasks_are_the_same_in_every_run_and_prompts_do_not_show_what_is_frozen(tmp_path: Path) -> None:
    for recipe in RECIPES:
        plans = [plan_synthesis(load_recipe(write_recipe(tmp_path, recipe), tmp_path), secrets={}) for _ in range(2)]
        assert plans[0].hash == plans[1].hash
        first, second = ([item for _, item in zip(range(6), plan.rules.recipe.items(), strict=False)] for plan in plans)
        assert first == second
        assert len({item.id for item in first}) == len(first)
        if recipe == "mathematics":
            for item in first:
                shown = [text for prompt in next(plans[0].rules.recipe.write(item.task)) for _, text in prompt.messages]
                assert not any(step in text for step in item.frozen["steps"] for text in shown)
        for plan in plans:
            plan.close()


def test_more_items_go_on_where_the_last_ended(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "mathematics")
    run(path, tmp_path / "grown", "data.items=12")
    grown = run(path, tmp_path / "grown", "data.items=24")
    run(path, tmp_path / "whole", "data.items=24")
    assert grown.spent.requests == 24, "the first twelve are not asked again"
    assert result(tmp_path / "grown") == result(tmp_path / "whole")


def test_another_recipe_or_generator_does_not_go_into_the_same_folder(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "mathematics")
    run(path, tmp_path / "out", "data.items=3", "data.dedup.exact=false")
    with pytest.raises(UserError, match="was begun with another recipe"):
        run(path, tmp_path / "out", "data.items=3", "data.seed=1")


def test_benchmarks_and_copies_are_taken_out(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "article")
    run(path, tmp_path / "all")
    text = rows(tmp_path / "all")[0]["text"]
    (tmp_path / "benchmark.txt").write_text(" ".join(text.split()[20:40]) + "\n")
    outcome = run(path, tmp_path / "some", f"data.decontaminate.files=[{tmp_path}/benchmark.txt]")
    summary = json.loads((tmp_path / "some/summary.json").read_text())
    assert summary["dropped"]["decontamination.benchmark"][0] == 1
    assert outcome.documents == len(rows(tmp_path / "some")) - 1
    assert list(Dataset(tmp_path / "some").manifest.decontaminated) == ["13"]


def test_nothing_accepted_is_one_line_with_the_report(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "rephrase")
    with pytest.raises(UserError, match="none of 2 tries was accepted"):
        run(path, tmp_path / "out", "data.items=1", "+data.options.most_copied=0.0")
    assert "near copy" in (tmp_path / "out/report.html").read_text()


def test_problems_of_reasoning_gym_are_scored_by_its_own_rules(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    path = write_recipe(tmp_path, "mathematics", "options: {kinds: [], reasoning_gym: [chain_sum, gcd]}\n")
    with contextlib.closing(plan_synthesis(load_recipe(path, tmp_path), secrets={})) as plan:
        recipe = plan.rules.recipe
        for _, item in zip(range(6), recipe.items(), strict=False):
            right = recipe.template(item, next(recipe.write(item.task))[0], Random(1))
            assert recipe.verifiers[1].check(item, Candidate(right)).ok, item
            assert not recipe.verifiers[1].check(item, Candidate("Answer: 123456789")).ok
            assert str(item.frozen["answer"]) not in str(item.task).partition("?")[2]
