"""The README's main job, whole: it learns every source, and what it writes can be read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bigram import held_out_loss
from support.golden import check_golden
from support.ranks import CommandResult, isthmus_cli

from isthmus.config import compose
from isthmus.data.corpus import build_corpus
from isthmus.train.config import Config


@dataclass(frozen=True)
class Smoke:
    result: CommandResult
    folder: Path
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Smoke:
    root = tmp_path_factory.mktemp("smoke")
    result = isthmus_cli("train", "experiment=smoke", f"data.cache_dir={shared_cache}", cwd=root)
    assert result.code == 0, result.err
    (folder,) = root.glob("runs/smoke-*/main")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Smoke(result, folder, rows)


def test_held_out_loss_falls_on_every_source(smoke: Smoke) -> None:
    first, last = smoke.rows[0]["held_out_loss"], smoke.rows[-1]["held_out_loss"]
    assert sorted(first) == ["synthetic", "transcripts", "web"]
    for source in first:
        assert last[source] <= 0.65 * first[source], f"{source}: {first[source]:.3f} -> {last[source]:.3f}"


def test_it_beats_a_bigram_model_of_the_same_tokens(smoke: Smoke, shared_cache: Path) -> None:
    config = compose(Config, "train", ["experiment=smoke", f"data.cache_dir={shared_cache}"])
    corpus = build_corpus(config.data, config.model.vocab_size)
    for name, loss in smoke.rows[-1]["held_out_loss"].items():
        source = corpus.sources[name]
        # Fitted on this source alone, it does better than on all of them.
        baseline = held_out_loss(source.train.array, source.held_out.array, config.model.vocab_size)
        assert loss < baseline, f"{name}: {loss:.3f} against {baseline:.3f}"


def test_trajectory_is_the_golden_one(smoke: Smoke, regenerate_golden: bool) -> None:
    # The corpus holds the manual and the docstrings of whatever Python runs this, which change a little from release to
    # release: the tolerance covers that and the arithmetic of other processors, not a change of the training itself.
    losses = np.array([row["loss"] for row in smoke.rows if row["loss"] is not None])
    means = losses.reshape(-1, 40).mean(1)
    trajectory = {"loss": [round(float(mean), 4) for mean in means], "held_out_loss": smoke.rows[-1]["held_out_loss"]}
    check_golden("smoke", trajectory, regenerate=regenerate_golden, relative=0.05)


def test_rows_have_the_documented_fields(smoke: Smoke) -> None:
    fields = {"step", "tokens", "loss", "learning_rate", "grad_norm", "step_seconds", "tokens_per_second"}
    for row in smoke.rows:
        assert fields | {"site", "attempt"} <= row.keys()
    assert [row["step"] for row in smoke.rows] == list(range(401))
    last = smoke.rows[-1]
    assert last["tokens"] == 400 * 16 * 128
    assert sum(last["data_mix"].values()) == 400 * 16
    assert last["mfu"] > 0


def test_run_folder_is_complete(smoke: Smoke) -> None:
    names = {path.name for path in smoke.folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "outcome.json", "tensorboard", "logs"} <= names
    outcome = json.loads((smoke.folder / "outcome.json").read_text())
    assert (outcome["status"], outcome["exit_code"], outcome["step"]) == ("completed", 0, 400)
    assert list((smoke.folder / "tensorboard").iterdir())


def test_last_lines_say_where_everything_is(smoke: Smoke) -> None:
    lines = smoke.result.out.splitlines()
    assert "everything is in runs/smoke-" in lines[-2]
    assert "tensorboard --logdir" in lines[-1]
    assert smoke.result.err == ""
