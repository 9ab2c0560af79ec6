"""Going back behind a spike is exact: afterwards the run is the one that would have been without those samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.ranks import run_ranks, run_sites
from support.runs import assert_equal_states, train_run

# Batch 7 explodes. Two steps before it nothing is trusted: step 4's checkpoint is taken, step 6's is not. Batches 6
# and 7 are left out.
GUARD = [
    *("guard.explosion=rewind", "guard.window=4", "guard.explosion_factor=30"),
    *("guard.rewind_steps=2", "guard.rewind_skip_before=1", "guard.rewind_skip_after=0"),
    *("checkpoint.every_steps=2", "checkpoint.asynchronous=false", "train.steps=9"),
]
LEFT_OUT = "data.skip=[[40,56]]"
FAULT = "chaos.faults=[{kind:corrupt_gradient,factor:1000000,step:7%s}]"
LOCAL = [
    *("sync=local", "sync.wire=int4", "sync.every=4", "sync.fragments=2", "sync.overlap_steps=3"),
    *("sync.merge=0.5", "sync.outer_learning_rate=0.7", "sync.outer_momentum=0.9"),
]
SHAPES = {
    "TP 2": (1, 2, ["parallel.tensor=2"]),
    "PP 2": (1, 2, ["parallel.pipeline=2"]),
    "DP 2": (1, 2, []),
    "two sites, exact": (2, 1, ["sync=exact", "sync.wire=int8"]),
    "two sites, local": (2, 1, LOCAL),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_run_that_went_back_equals_the_run_without_those_samples(
    shape: str, tmp_path: Path, shared_cache: Path
) -> None:
    sites, ranks, words = SHAPES[shape]
    words = [*words, *GUARD, f"data.cache_dir={shared_cache}"]

    def run(root: str, stop_at: int | None, *more: str) -> list[dict[str, Any]]:
        if sites == 1:
            return run_ranks(train_run, ranks, str(tmp_path / root), stop_at, [*words, *more])
        return [seen for (seen,) in run_sites(train_run, sites, ranks, str(tmp_path / root), stop_at, [*words, *more])]

    # Of two sites only the second one's gradient explodes: with local sync the first does not see it.
    fault = FAULT % (",site:site1" if sites > 1 else "")
    reference = run("reference", None, LEFT_OUT)
    first = run("runs", None, fault)
    for seen in first:
        assert seen["step"] == 7 if shape != "two sites, local" else 7 <= seen["step"] < 9
        assert "times the last ones; the run goes back to step 5" in seen["rewound"]
        assert "samples 40 to 55 are left out" in seen["rewound"]
    # Killed before it comes to the samples that it leaves out: the next attempt leaves them out too.
    killed = run("runs", 5, fault)
    last = run("runs", None, fault)
    for one, second, after in zip(reference, killed, last, strict=True):
        assert sorted(second["losses"]) == [5]
        expected = {step: one["losses"][step] for step in range(5, 10)}
        assert repr(dict(sorted({**second["losses"], **after["losses"]}.items()))) == repr(
            expected
        )  # NaN where left out
        assert_equal_states(one, after)
    folder = tmp_path / "runs" / "r" / ("site0" if sites > 1 else "main")
    assert "step-0000000006-a0001 was saved too near a loss spike" in killed[0]["told"]
    assert "samples 40 to 55 are left out since step 7" in last[0]["told"]
    _the_decision_is_everywhere(folder, by="site1" if sites > 1 else "main", alone=shape == "two sites, local")


def _the_decision_is_everywhere(folder: Path, by: str, alone: bool) -> None:
    (decision,) = json.loads((folder / "rewinds.json").read_text())
    assert (decision["site"], decision["step"], decision["skip"]) == (by, 7, [40, 56])
    judged = folder.with_name("site1") if alone else folder  # whoever has seen it
    rows = [json.loads(line) for line in (judged / "metrics.jsonl").read_text().splitlines()]
    guard = [entry for row in rows for entry in row.get("guard", [])]
    ledger = [json.loads(line) for line in (judged / "ledger.jsonl").read_text().splitlines()]
    booked = [row for row in ledger if row["what"] == "guard"]
    for entry in (*guard, *booked):
        assert (entry["step"], entry["decision"]) == (7, "rewind")
    assert len(guard) == len(booked) == 1
