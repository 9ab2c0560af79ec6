"""When a run saves: what `checkpoint.every_steps=auto` reckons with, and that it says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from isthmus.fault_tolerance.config import CheckpointConfig
from isthmus.fault_tolerance.interval import daly_interval
from isthmus.train.save_schedule import SaveSchedule


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def saves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, steps: int, stall: float = 1.0, **keys: Any
) -> tuple[list[int], list[str]]:
    """Return the steps after which a run saves whose steps take a second each, and what it says."""
    clock, told = Clock(), []
    monkeypatch.setattr("isthmus.train.save_schedule.time", clock)
    schedule = SaveSchedule(
        CheckpointConfig(**keys), folder / "ledger.jsonl", leads=True, ask_sites=lambda wish: [wish], tell=told.append
    )
    schedule.begin(0)
    found = []
    for step in range(1, steps + 1):
        clock.now += 1.0
        if schedule.is_due(step):
            found.append(step)
            schedule.saved(step, stall)
    return found, told


def test_a_number_of_steps_is_taken_at_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saves(tmp_path, monkeypatch, steps=10, every_steps=4) == ([4, 8], [])
    assert saves(tmp_path, monkeypatch, steps=10, every_steps=0) == ([], [])


def test_auto_reckons_with_what_is_configured_until_the_run_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, told = saves(tmp_path, monkeypatch, steps=600, failure_hours=2.0, restart_seconds=30.0)
    every = round(daly_interval(1.0, 7200))  # of a step each second
    assert found[:3] == [10 + every, 10 + 2 * every, 10 + 3 * every]
    # Daly 2006, equation 20: 119 / (7200 e^(30 / 7200) (e^(120 / 7200) - 1))
    assert told == [
        f"checkpoints every {every} steps ({every} s, Daly's interval for a stall of 1.0 s and a failure every 2 h "
        "that costs 30s to restart (configured)): 97.9% of the time is left for training"
    ]


def test_auto_reckons_with_the_failures_that_the_run_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for attempt in range(4):  # 250 s each, and 50 s from each failure to the next step
        begun = 300.0 * attempt
        rows += [
            {"what": "begin", "step": 0, "started": begun, "time": begun, "init": 0.0},
            {"what": "step", "step": 1, "started": begun, "time": begun + 250},
        ]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, told = saves(tmp_path, monkeypatch, steps=120, failure_hours=1000.0)
    every = round(daly_interval(1.0, 1000 / 3))
    assert found[0] == 10 + every
    assert "a failure every 5m33s that costs 50s to restart (3 seen in this run)" in told[0]


def test_sites_save_after_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("isthmus.train.save_schedule.time", clock)
    schedule = SaveSchedule(
        CheckpointConfig(), tmp_path / "none", leads=True, ask_sites=lambda wish: [wish, {"next": 500}], tell=print
    )
    schedule.begin(0)
    due = []
    for step in range(1, 600):
        clock.now += 1.0
        if schedule.is_due(step):
            due.append(step)
    assert due == [500]
