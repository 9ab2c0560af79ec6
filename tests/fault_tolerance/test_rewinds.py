"""Which checkpoints a run may go on from after it went back, and which samples it leaves out: without processes."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import new_store, save

from isthmus.errors import UserError
from isthmus.fault_tolerance.guard import GuardConfig
from isthmus.fault_tolerance.rewinds import REWINDS, Rewind, RewindLog, choose_step, distrusted
from isthmus.fault_tolerance.store import Store
from isthmus.train.rewinding import Rewound, RunRewinds, rewound


def rewind(**fields: Any) -> Rewind:
    values = {"site": "main", "step": 35, "why": "a spike", "newest_trusted": 25, "skip": (10, 20), "attempt": 1}
    return Rewind(**{**values, **fields})


def test_what_was_saved_before_the_decision_and_too_late_is_not_trusted(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for step, attempt in ((10, 1), (20, 1), (30, 1), (30, 2), (40, 2)):
        save(store, step, attempt)
    found = distrusted(store.scan(), [rewind()])
    assert [(entry.step, entry.attempt) for entry in found] == [(30, 1)]
    both = [rewind(), rewind(attempt=2, newest_trusted=35)]
    assert {(entry.step, entry.attempt) for entry in distrusted(store.scan(), both)} == {(30, 1), (40, 2)}


@pytest.mark.parametrize(
    ("trusted", "others", "chosen"),
    [
        ([{10, 20}], [{30}], 20),
        ([{10, 20}, {10}], [{30}, {20, 30}], 10),
        ([set()], [{30, 40}], 30),  # none is old enough: the oldest is the best there is
        ([set(), {20}], [{20, 30}, {30}], 20),
        ([set()], [set()], None),
        ([{10}, {20}], [set(), set()], None),
    ],
)
def test_the_step_to_go_back_to(trusted: list[set[int]], others: list[set[int]], chosen: int | None) -> None:
    assert choose_step(trusted, others) == chosen


class Batches:
    """A loader as far as going back needs one: batches of 8 samples."""

    def __init__(self) -> None:
        self.drawn = 0
        self.left_out: list[range] = []

    def state_dict(self) -> dict[str, Any]:
        return {"samples": 8 * self.drawn}

    def skip_samples(self, ranges: Any) -> None:
        self.left_out += list(ranges)


def attempt_in(folder: Path, site: str = "main", **keys: int) -> tuple[RunRewinds, Batches, list[str]]:
    folder.mkdir(exist_ok=True)
    batches, told = Batches(), []
    config = GuardConfig(**{"rewind_steps": 10, "rewind_skip_before": 2, "rewind_skip_after": 1, **keys})
    return RunRewinds(config, folder, batches, site=site, global_batch=8, tell=told.append), batches, told  # type: ignore[arg-type]


def alone(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [message]


def test_a_wish_becomes_a_decision_on_disk_that_the_next_attempt_obeys(tmp_path: Path) -> None:
    rewinds, batches, _ = attempt_in(tmp_path)
    assert rewinds.agree(alone, attempt=3, writes=True) == []
    assert not (tmp_path / REWINDS).exists()
    batches.drawn = 35
    rewinds.ask(35, "a spike")
    (decided,) = rewinds.agree(alone, attempt=3, writes=True)
    assert (decided.newest_trusted, decided.skip) == (25, (8 * 32, 8 * 36))  # batches 33 to 36
    error = rewound([decided])
    assert isinstance(error, Rewound)
    assert error.exit_code == 87
    following, batches, told = attempt_in(tmp_path)
    following.meet(alone, before=4, writes=True)
    following.apply()
    assert (following.count, batches.left_out) == (1, [range(256, 288)])
    assert following.log.entries[0].attempt == 3
    assert told == ["samples 256 to 287 are left out since step 35, where a spike"]


def test_ranges_end_where_the_run_begins(tmp_path: Path) -> None:
    rewinds, batches, _ = attempt_in(tmp_path)
    batches.drawn = 2
    rewinds.ask(2, "a spike")
    (decided,) = rewinds.agree(alone, attempt=1, writes=True)
    assert (decided.newest_trusted, decided.skip) == (0, (0, 24))


def test_a_site_that_died_while_it_wrote_hears_of_the_decision_from_the_others(tmp_path: Path) -> None:
    first, batches, _ = attempt_in(tmp_path / "one", "one")
    batches.drawn = 35
    first.ask(35, "a spike")
    first.agree(alone, attempt=3, writes=True)
    messages: list[dict[str, Any]] = []
    again, _, _ = attempt_in(tmp_path / "one", "one")
    other, batches, _ = attempt_in(tmp_path / "two", "two")
    again.meet(lambda message: messages.append(message) or [message], before=4, writes=True)  # type: ignore[func-returns-value]
    other.meet(lambda message: [*messages, message], before=8, writes=True)
    other.apply()
    (learnt,) = RewindLogOf(tmp_path / "two").entries
    # It was about all that this site had saved until then.
    assert (learnt.site, learnt.attempt, batches.left_out) == ("one", 7, [range(256, 288)])


def RewindLogOf(folder: Path) -> RewindLog:
    log = RewindLog(folder)
    log.read()
    return log


def test_what_is_not_trusted_is_set_aside_and_doing_so_twice_changes_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for step in (10, 20, 30):
        save(store, step)
    rewinds, batches, told = attempt_in(tmp_path)
    batches.drawn = 35
    rewinds.ask(35, "a spike")
    rewinds.agree(alone, attempt=1, writes=True)
    for _ in range(2):
        rewinds.set_aside(store, 20)
        assert [entry.step for entry in store.scan()] == [20, 10]
    assert len(told) == 1
    assert store.next_attempt() == 2
    save(store, 30, 2)
    rewinds.set_aside(store, 30)
    assert [entry.step for entry in Store(store.folder).scan()] == [30, 20, 10]


def test_a_damaged_record_of_rewinds_is_refused(tmp_path: Path) -> None:
    for content in ("{", "[1]", '[{"skip": [1]}]'):
        (tmp_path / REWINDS).write_text(content)
        with pytest.raises(UserError, match="is damaged"):
            RewindLogOf(tmp_path)


def test_decisions_are_written_once_whoever_repeats_them(tmp_path: Path) -> None:
    log = RewindLog(tmp_path)
    log.read()
    for entries in itertools.repeat([rewind(), rewind(site="two"), rewind(step=36)], 3):
        log.add(entries, 1)  # two sites that saw the same spike made one decision
    assert len(RewindLogOf(tmp_path).entries) == 2
    assert log.last_attempt == 1
    log.forget()
    assert RewindLogOf(tmp_path).entries == []
