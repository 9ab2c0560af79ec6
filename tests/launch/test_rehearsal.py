"""A whole run that hangs is explained and ended, with the exit code that has it started again."""

import json
from pathlib import Path

import pytest
from support.ranks import isthmus_cli


@pytest.mark.slow
def test_a_run_that_hangs_is_shown_and_ended(tmp_path: Path, shared_cache: Path) -> None:
    run = isthmus_cli(
        *("launch", "launch.processes=2", "run.name=r", f"data.cache_dir={shared_cache}"),
        *("train.steps=8", "train.global_batch=4", "train.sequence_length=32", "log.tensorboard=false"),
        *("checkpoint.every_steps=2", "restart.without_progress=0"),
        # Rank 0 waits for rank 1 in a collective, which loses patience first and asks who it is.
        *("train.timeout_seconds=20", "watchdog.floor_seconds=30", "watchdog.grace_seconds=20"),
        "chaos.faults=[{kind:stall,rank:1,step:5,point:data,seconds:3000}]",
        cwd=tmp_path,
    )
    assert run.code == 86, run.err
    assert "chaos: stall on rank 1 at step 5 in data for 3000 s (once)" in run.err
    assert "rank 1 hangs in phase data of step 5" in run.err
    assert "in _strike)" in run.err
    folder = tmp_path / "runs/r/main"
    assert "chaos.py" in (folder / "logs/rank-00001.log").read_text()
    outcome = json.loads((folder / "outcome.json").read_text())
    assert (outcome["status"], outcome["exit_code"], outcome["rank"]) == ("failed", 86, 1)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
