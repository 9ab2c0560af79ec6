"""A rank that is slow by itself is named; one that others make wait is not."""

import json
from pathlib import Path

from support.ranks import run_ranks
from support.runs import train_run


def test_the_rank_with_the_longest_own_time_is_named(tmp_path: Path, shared_cache: Path) -> None:
    words = [
        *("checkpoint.every_steps=0", f"data.cache_dir={shared_cache}", "train.steps=4", "watchdog.compare_every=2"),
        # Rank 0 waits for it in a collective: that is no work.
        "chaos.faults=[{kind:stall,rank:1,step:3,point:data,seconds:10}]",
    ]
    run_ranks(train_run, 2, str(tmp_path), None, words)
    rows = [json.loads(line) for line in (tmp_path / "r/main/metrics.jsonl").read_text().splitlines()]
    compared = {row["step"]: row for row in rows if "slowest_rank" in row}
    assert sorted(compared) == [2, 4]
    assert compared[4]["slowest_rank"] == 1
    assert compared[4]["slowest_rank_score"] == max(compared[4]["rank_scores"].values()) > 1.5
    assert set(compared[4]["rank_scores"]) == {"0", "1"}
