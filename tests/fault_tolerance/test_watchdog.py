"""A rank that hangs is noticed, named, shown and ended, whatever it hangs in; one that is slow is not."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.errors import EXIT_HANG, UserError
from isthmus.fault_tolerance.deadlines import Deadlines
from isthmus.fault_tolerance.hang import Note, Notes, diagnose, main_thread
from isthmus.fault_tolerance.pulse import Pulse, PulseMemory
from isthmus.fault_tolerance.watcher import Options, write_outcome
from isthmus.files import write_json
from isthmus.processes import attempt_id
from isthmus.train.config import Config
from isthmus.train.timeouts import floor_seconds, silence_seconds, validate_timeouts

_RANK = Path(__file__).parents[1] / "support" / "hanging_rank.py"


class Ranks:
    """Ranks of `support/hanging_rank.py`, each of which hangs in its own way."""

    def __init__(self, folder: Path, *ways: str, more: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(_RANK), str(folder), str(rank), str(len(ways)), way, *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, way in enumerate(ways)
        ]
        for process in self.processes:
            assert process.stdout
            assert process.stdout.readline() == "started\n", process.communicate()

    def go(self) -> None:
        for process in self.processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()

    def end(self) -> tuple[list[int], str]:
        """Wait for all of them; return their exit codes and what they said."""
        said = ""
        try:
            for process in self.processes:
                said += process.communicate(timeout=120)[1]
        finally:
            for process in self.processes:
                process.kill()
        return [process.returncode for process in self.processes], said

    def log(self, rank: int) -> str:
        return (self.folder / "logs" / f"rank-{rank:05d}.log").read_text()

    def outcome(self) -> dict[str, Any]:
        outcome = json.loads((self.folder / "outcome.json").read_text())
        assert isinstance(outcome, dict)
        return outcome


def test_the_rank_that_the_others_wait_for_is_named_and_all_stacks_are_written(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "waits", "sleeps")
    ranks.go()
    codes, said = ranks.end()
    assert codes == [EXIT_HANG, EXIT_HANG]
    assert "rank 1 hangs in phase data of step 5" in said
    assert "in read_a_shard_for_ever); rank 0 in phase compute of step 5" in said
    assert (ranks.outcome()["exit_code"], ranks.outcome()["rank"]) == (EXIT_HANG, 1)
    assert "read_a_shard_for_ever" in ranks.log(1)
    assert "in main" in ranks.log(0)


def test_a_rank_that_keeps_pythons_lock_is_ended_all_the_same(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "lock")
    ranks.go()
    codes, said = ranks.end()
    assert codes == [-signal.SIGKILL]  # it cannot leave by itself, but it has shown where it is
    assert "rank 0 hangs in phase data of step 5" in said
    assert "_hold_lock" in ranks.log(0)
    assert ranks.outcome()["exit_code"] == EXIT_HANG  # which is what the supervisor goes by


def test_a_frozen_rank_is_named_by_its_watcher(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "waits", "sleeps")
    os.kill(ranks.processes[1].pid, signal.SIGSTOP)  # before its first step, where it has a minute
    ranks.go()
    codes, said = ranks.end()
    assert codes == [EXIT_HANG, -signal.SIGKILL]
    assert "rank 1 hangs in phase start" in said


def test_a_timeout_of_one_rank_names_the_one_that_it_waited_for(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "timeout", "sleeps")
    ranks.go()
    codes, said = ranks.end()
    assert codes[0] == EXIT_HANG
    assert "rank 1 hangs in phase data of step 5" in said
    assert ranks.outcome()["rank"] == 1


def test_ranks_are_asked_where_they_are_before_a_collective_gives_up(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "patient", "late", more=("1", "100"))
    ranks.go()
    codes, said = ranks.end()
    assert codes == [0, 0]  # it ends nothing
    assert "it seems that rank 1 hangs in phase data of step 5" in said
    # On a busy machine the other rank may lose patience before it hears that the first one has.
    assert said.count("it seems") in (1, 2)
    assert "in main" in ranks.log(0)
    assert ranks.outcome()["status"] == "running"


def test_a_diagnosis_from_another_node_belongs_to_the_same_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ab-17.0-3")
    assert attempt_id() == "ab-17.0-3"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert attempt_id() == str(os.getppid())
    options = Options(
        rank=8,
        size=16,
        folder=str(tmp_path),
        log="",
        descriptor=0,
        grace_seconds=1.0,
        least_deadline=1.0,
        since=0.0,
        attempt_id="ab-17.0-3",
    )
    for attempt, code in (("ab-17.0-2", None), ("ab-17.0-3", EXIT_HANG)):
        write_json(tmp_path / "outcome.json", {"status": "running", "attempt_id": attempt})
        write_outcome(options, [5], "rank 5 hangs")
        assert json.loads((tmp_path / "outcome.json").read_text()).get("exit_code") == code


def note(rank: int, count: int, *, waiting: bool = False, phase: str = "compute", **fields: Any) -> Note:
    values = {"step": 3, "seconds": 31.0, "expired": True, "at": "x.py:1 in f", "time": 0.0, **fields}
    return Note(rank=rank, count=count, phase=phase, waiting=waiting, **values)


def test_a_note_of_an_alarm_before_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    notes = Notes(tmp_path, since=100.0)
    notes.write(note(1, 8, time=150.0, expired=False))
    notes.write(note(0, 9, time=200.0))
    answer = threading.Timer(0.5, notes.write, [note(1, 9, time=201.0, expired=False)])
    answer.start()
    assert [found.count for found in notes.gather(2, 60.0)] == [9, 9]
    assert notes.speaker() == 0


@pytest.mark.parametrize(
    ("notes", "size", "guilty"),
    [
        ([note(0, 9), note(1, 8, phase="data"), note(2, 9)], 3, [1]),  # behind the others
        ([note(0, 9, waiting=True), note(1, 9), note(2, 9, waiting=True)], 3, [1]),  # of the same phase, busy
        ([note(0, 9), note(2, 9)], 3, [1]),  # gave no sign
        ([note(0, 9, waiting=True), note(1, 9, waiting=True)], 2, []),  # a deadlock
        ([note(0, 9)], 1, [0]),
        ([], 2, []),
    ],
)
def test_who_the_others_wait_for(notes: list[Note], size: int, guilty: list[int]) -> None:
    found, line = diagnose(notes, size)
    assert found == guilty
    assert ("rank 1" in line) == (guilty == [1])


def test_the_main_threads_place_is_the_last_of_a_dump() -> None:
    dump = (
        "Thread 0x00007f (most recent call first):\n"
        '  File "/lib/threading.py", line 3 in wait\n\n'
        "Current thread 0x00007e (most recent call first):\n"
        '  File "/site-packages/torch/distributed/distributed_c10d.py", line 2806 in all_reduce\n'
        '  File "/isthmus/parallelism/engine.py", line 120 in forward_backward\n'
    )
    assert main_thread(dump) == ("distributed_c10d.py:2806 in all_reduce", True)
    assert main_thread("") == ("", False)


def test_deadlines_are_learnt_and_never_below_the_floor() -> None:
    deadlines = Deadlines(first=100, floor=30, factor=10, floors={"checkpoint": 50})
    assert deadlines.of("compute") == 100  # finite before anything is known
    for seconds in (9.0, 1.0, 1.0):
        deadlines.observe("compute", seconds)
        deadlines.observe("checkpoint", 0.1)
    assert deadlines.of("compute") == 30
    assert deadlines.of("checkpoint") == 50
    deadlines.observe("compute", 8.0)
    assert deadlines.of("compute") == 80  # ten times the longest but one
    for _ in range(300):
        deadlines.observe("compute", 4.0)
    assert deadlines.of("compute") == 40  # what is long ago is forgotten


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.001, 1000), min_size=3, max_size=600))
def test_deadlines_remember_the_longest_but_one(seconds: list[float]) -> None:
    deadlines = Deadlines(first=1, floor=0, factor=2)
    for value in seconds:
        deadlines.observe("x", value)
    assert deadlines.of("x") == 2 * sorted(seconds[-256:])[-2]


def test_a_pulse_is_read_whole_while_it_is_written() -> None:
    writer = PulseMemory()
    reader = PulseMemory(os.dup(writer.descriptor))
    writer.write(Pulse(0, 0, "p0", 0.0, 0.0))
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            writer.write(Pulse(number, number, f"p{number}", float(number), float(number)))

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(2000):
        pulse = reader.read()
        assert (pulse.step, pulse.phase, pulse.begun) == (pulse.count, f"p{pulse.count}", float(pulse.count))
    over.set()
    thread.join()
    reader.close()
    writer.close()


def config_with(**keys: float) -> Config:
    config = Config()
    for name, value in keys.items():
        section, _, entry = name.partition("__")
        setattr(getattr(config, section), entry, value)
    return config


def test_timeouts_are_in_order_by_default_and_follow_one_another() -> None:
    validate_timeouts(Config())
    assert Config().train.timeout_seconds < floor_seconds(Config()) < silence_seconds(Config())
    longer = config_with(train__timeout_seconds=1200)
    validate_timeouts(longer)
    assert floor_seconds(longer) == 1800


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"watchdog__floor_seconds": 500}, "train.timeout_seconds: is 600, watchdog.floor_seconds 500"),
        ({"watchdog__first_seconds": 800}, "watchdog.first_seconds: is 800, watchdog.floor_seconds 900"),
        ({"restart__silence_seconds": 900}, "watchdog.floor_seconds: is 900, restart.silence_seconds 900"),
        ({"restart__silence_seconds": 10}, "restart.silence_seconds: is 10; 15 or more"),
        ({"watchdog__factor": 1}, "watchdog.factor"),
        ({"watchdog__grace_seconds": 0}, "watchdog.grace_seconds"),
    ],
)
def test_an_inconsistent_set_of_timeouts_is_refused(keys: dict[str, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        validate_timeouts(config_with(**keys))


def test_every_timeout_is_finite_by_default_and_in_the_guide() -> None:
    # Others leave theirs infinite, or their order to be found out.
    config = Config()
    limits = {
        "lane.deadline_seconds": config.lane.deadline_seconds,
        "train.timeout_seconds": config.train.timeout_seconds,
        "watchdog.floor_seconds": floor_seconds(config),
        "restart.silence_seconds": silence_seconds(config),
    }
    assert list(limits.values()) == sorted(limits.values())
    guide = (Path(__file__).parents[2] / "docs/fault_tolerance.md").read_text()
    places = [guide.index(f"| `{name}`:") for name in limits]
    assert places == sorted(places)
    for seconds in (*limits.values(), config.watchdog.first_seconds, config.checkpoint.deadline_seconds):
        assert 0 < seconds < 86_400


def test_timeouts_between_sites_are_part_of_the_order() -> None:
    from isthmus.parallelism.sites.config import SyncKind

    for keys, named in (
        ({"lane__deadline_seconds": 600}, "lane.deadline_seconds"),
        ({"sites__wait_seconds": 3600}, "sites.wait_seconds"),
    ):
        config = config_with(**keys)
        validate_timeouts(config)  # of one site alone, they do nothing
        config.sync.kind = SyncKind.exact
        with pytest.raises(UserError, match=named):
            validate_timeouts(config)
