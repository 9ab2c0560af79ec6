"""Judges: what they say, what the panel makes of it, and how far they can be trusted."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console
from support.recipes import HTTP, load_recipe, write_recipe
from support.scripted_server import Messages, ScriptedServer

from isthmus.data.synthetic.calibrate import calibrate
from isthmus.data.synthetic.config import PanelRule
from isthmus.data.synthetic.judges import Panel, RubricJudge, template_judgement
from isthmus.data.synthetic.pipeline import folder_lock, synthesize
from isthmus.data.synthetic.plan import plan_synthesis
from isthmus.data.synthetic.progress import SynthesisProgress
from isthmus.data.synthetic.protocols import Item
from isthmus.data.synthetic.statistics import kappa
from isthmus.errors import UserError


@pytest.mark.parametrize(
    ("answer", "ok", "reason"),
    [
        ('{"correctness": 1, "style": 1, "reason": "fine"}', True, ""),
        ('Let me see.\n```json\n{"correctness": 1, "style": 1}\n```', True, ""),
        ('{"correctness": 0, "style": 1}', False, "judged 0 in correctness"),
        ('{"correctness": 0, "style": 0}', False, "judged 0 in correctness and style"),
        ("correctness: 1\nstyle: 1", True, ""),
        ("**Correctness**: 1, **style**: 0", False, "judged 0 in style"),
        ('First {"correctness": 0, "style": 0}, but then {"correctness": 1, "style": 1}', True, ""),
        ('{"correctness": true, "style": true}', False, "the judge did not follow the rubric"),
        ('{"correctness": 2, "style": 1}', False, "the judge did not follow the rubric"),
        ('{"correctness": 0.9, "style": 1}', False, "the judge did not follow the rubric"),
        ("correctness: 1, style: 1, or correctness: 0", False, "the judge did not follow the rubric"),
        ("Both are 1.", False, "the judge did not follow the rubric"),
        ('{"correctness": 1', False, "the judge did not follow the rubric"),
        ("", False, "the judge did not follow the rubric"),
    ],
)
def test_scores_are_read_strictly(answer: str, ok: bool, reason: str) -> None:
    verdict = RubricJudge("j").read(answer)
    assert (verdict.ok, verdict.reason) == (ok, reason)


def test_the_panel_counts_votes() -> None:
    judges = [RubricJudge(str(number)) for number in range(3)]
    majority, unanimity = Panel(judges, PanelRule.majority), Panel(judges, PanelRule.unanimity)
    assert majority.agrees([True, True, False])
    assert not majority.agrees([True, False])
    assert not unanimity.agrees([True, True, False])
    assert unanimity.agrees([True, True, True])


def test_the_rubric_and_the_material_are_asked_about() -> None:
    prompt = RubricJudge("j", "mine").prompt(Item("1", "t", {"text": "source"}), "document")
    assert prompt.messages[0][1].startswith("You judge texts")
    assert "mine" in prompt.messages[0][1]
    assert prompt.messages[1][1] == "The material:\nsource\n\nThe text:\ndocument"
    assert json.loads(template_judgement("As an AI, I say"))["style"] == 0
    assert json.loads(template_judgement("A sentence."))["style"] == 1


def test_kappa_is_agreement_beyond_chance() -> None:
    # Wikipedia, "Cohen's kappa": 20 both yes, 5 and 10 apart, 15 both no give 0.4; and chance gives 0.
    assert kappa((20, 5, 10, 15)) == pytest.approx(0.4)
    assert kappa((25, 25, 25, 25)) == 0.0
    assert kappa((0, 5, 5, 0)) == -1.0
    assert kappa((7, 0, 0, 0)) == 1.0


def test_calibration_counts_against_labels_and_asks_once(tmp_path: Path) -> None:
    labels = [True] * 6 + [False] * 4
    rows = [{"text": f"text {number}", "keep": keep} for number, keep in enumerate(labels)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said_wrongly = {"strict": {0, 1}, "lenient": {8, 9, 5}}

    def answer(messages: Messages) -> str:
        name = "strict" if "strict" in messages[0][1] else "lenient"
        number = int(messages[1][1].split()[-1])
        good = int(labels[number] is (number not in said_wrongly[name]))
        return f'{{"correctness": {good}, "style": 1}}'

    with ScriptedServer(answer) as server:
        judges = "judges: {members: {strict: {rubric: strict}, lenient: {rubric: lenient}}, rule: unanimity}\n"
        path = write_recipe(tmp_path, "mathematics", HTTP.format(url=server.url, parallel=2), judges)
        config = load_recipe(path, tmp_path / "out")
        for _ in range(2):
            with closing(plan_synthesis(config, secrets={})) as plan, folder_lock(plan.out):
                strict, lenient, panel = calibrate(plan, tmp_path / "labels.jsonl")
    assert sum(server.answered.values()) == 20, "the second time everything is in the journal"
    assert strict.cells == (4, 0, 2, 4)
    assert (strict.precision, strict.recall) == (1.0, pytest.approx(4 / 6))
    assert lenient.cells == (5, 2, 1, 2)
    assert panel.cells == (3, 0, 3, 4)
    assert strict.kappa == pytest.approx(0.6153846)  # observed 0.8, chance (4 x 6 + 6 x 4) / 100 = 0.48


def test_calibrating_other_texts_asks_again_and_draws_on_the_same_budget(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    with ScriptedServer(lambda messages: f'{{"correctness": {int("good" in messages[1][1])}, "style": 1}}') as server:
        judges = "judges: {members: {one: {}}}\nbudget: {requests: 3}\n"
        path = write_recipe(tmp_path, "mathematics", HTTP.format(url=server.url, parallel=2), judges)
        config = load_recipe(path, tmp_path / "out")

        def calibrated(*texts: str) -> tuple[int, int, int, int]:
            labels.write_text("".join(json.dumps({"text": text, "keep": True}) + "\n" for text in texts))
            with closing(plan_synthesis(config, secrets={})) as plan, folder_lock(plan.out):
                (found,) = calibrate(plan, labels)
            return found.cells

        assert calibrated("good", "bad") == (1, 0, 1, 0)
        assert calibrated("good") == (1, 0, 0, 0)
        assert calibrated("good", "bad") == (1, 0, 1, 0)
        with pytest.raises(UserError, match="budget: is spent"):
            calibrated("another good")
        with pytest.raises(UserError, match="none of 0 tries"):
            synthesize(config, SynthesisProgress(Console(quiet=True)), secrets={})
    assert sum(server.answered.values()) == 3


def test_a_bad_label_file_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text('{"text": "a", "keep": true}\n{"text": "b"}\n')
    judges = "judges: {members: {one: {}}}\n"
    config = load_recipe(write_recipe(tmp_path, "mathematics", judges), tmp_path / "out")
    with (
        closing(plan_synthesis(config, secrets={})) as plan,
        folder_lock(plan.out),
        pytest.raises(UserError, match=":2"),
    ):
        calibrate(plan, tmp_path / "labels.jsonl")
    with (
        closing(plan_synthesis(load_recipe(write_recipe(tmp_path, "mathematics"), tmp_path / "o"), secrets={})) as plan,
        pytest.raises(UserError, match="name the judges"),
    ):
        calibrate(plan, tmp_path / "labels.jsonl")
