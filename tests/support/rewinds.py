"""A run that meets an explosion, goes back and is killed once more on the way; and the run that it must then equal."""

import json
from pathlib import Path
from typing import Any

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


def check_rewind(shape: str, folder: Path, cache: Path, *, kill: bool) -> None:
    """Go back on one of SHAPES and compare with a run without the samples that are left out, bit by bit.

    Args:
        kill: the attempt that goes back is killed before it comes to those samples; the next leaves them out too.
    """
    sites, ranks, words = SHAPES[shape]
    words = [*words, *GUARD, f"data.cache_dir={cache}"]

    def run(root: str, stop_at: int | None, *more: str) -> list[dict[str, Any]]:
        if sites == 1:
            return run_ranks(train_run, ranks, str(folder / root), stop_at, [*words, *more])
        return [seen for (seen,) in run_sites(train_run, sites, ranks, str(folder / root), stop_at, [*words, *more])]

    # Of two sites only the second one's gradient explodes: with local sync the first does not see it.
    fault = FAULT % (",site:site1" if sites > 1 else "")
    local = "sync=local" in words
    reference = run("reference", None, LEFT_OUT)
    for seen in run("runs", None, fault):
        # With local sync the other site may be ahead: they end where both can.
        assert seen["step"] == 7 or (local and 7 < seen["step"] <= 9)
        assert "times the last ones; the run goes back to step 5" in seen["rewound"]
        assert "samples 40 to 55 are left out" in seen["rewound"]
    killed = run("runs", 5, fault) if kill else [{"losses": {}, "told": ""}] * len(reference)
    last = run("runs", None, fault)
    for one, second, after in zip(reference, killed, last, strict=True):
        losses = {**second["losses"], **after["losses"]}
        # As text: where a batch is left out, the loss is NaN.
        expected = [f"{step} {one['losses'][step]}" for step in range(5, 10)]
        assert [f"{step} {loss}" for step, loss in sorted(losses.items())] == expected
        assert_equal_states(one, after)
    assert "step-0000000006-a0001 was saved too near a loss spike" in killed[0]["told"] + last[0]["told"]
    assert "samples 40 to 55 are left out since step 7" in last[0]["told"]
    for number in range(sites):
        _check_records(folder / "runs" / "r" / (f"site{number}" if sites > 1 else "main"), judged=number or not local)


def _check_records(folder: Path, judged: bool) -> None:
    """The decision is in every site's folder, and in metrics and ledger of those that made it."""
    (decision,) = json.loads((folder / "rewinds.json").read_text())
    assert (decision["step"], decision["newest_trusted"], decision["skip"]) == (7, 5, [40, 56])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ledger = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for entries in (
        [entry for row in rows for entry in row.get("guard", [])],
        [r for r in ledger if r["what"] == "guard"],
    ):
        assert [(entry["step"], entry["decision"]) for entry in entries] == [(7, "rewind")] * bool(judged)
