"""Sites meet only if they are one run, in time, with the same secret; whoever differs is told in what."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.ranks import free_port

from isthmus.config import compose
from isthmus.errors import UserError
from isthmus.parallelism.sites.config import LaneConfig, SitesConfig
from isthmus.parallelism.sites.meeting import Attendance, SiteAbsent, meet
from isthmus.train.config import Config, run_name
from isthmus.train.sites import shared_keys

NAMES = ["oregon", "iowa"]
CONFIG: dict[str, Any] = {"model.hidden_size": 64, "train.steps": 10, "train.seed": 0}


def attend(site: int, store: str, **changes: Any) -> Any:
    """Meet the others; return their names, or the error."""
    fields = {"run": "run", "world_size": 1, "rank": 0, "config": CONFIG, "token": None, "wait": 20.0, "names": NAMES}
    fields |= changes
    told: list[str] = changes.get("told", [])
    sites = SitesConfig(
        name=fields["names"][site],
        names=fields["names"],
        store=store,
        token_file=fields["token"],
        wait_seconds=fields["wait"],
    )
    attendance = Attendance(fields["run"], fields["world_size"], fields["rank"], fields["config"])
    try:
        with meet(sites, LaneConfig(streams=2, deadline_seconds=10), attendance, tell=told.append) as lane:
            lane.exchange(1, {peer: b"" for peer in range(len(lane.names)) if peer != lane.site}).wait()
            return list(lane.names)
    except UserError as error:
        return str(error)


def both(first: dict[str, Any], second: dict[str, Any]) -> list[Any]:
    store = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda number: attend(number, store, **(first, second)[number]), range(2)))


def test_sites_meet() -> None:
    assert both({}, {}) == [NAMES, NAMES]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config": {**CONFIG, "model.hidden_size": 128}}, "model.hidden_size (64 here, 128 there)"),
        ({"config": {**CONFIG, "train.steps": 11, "train.seed": 1}}, "train.seed (0 here, 1 there), train.steps (10"),
        ({"config": {**CONFIG, "optim.new": 1}}, "optim.new (null here, 1 there)"),
        ({"world_size": 2}, "1 ranks here and 2 in iowa"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], expected: str) -> None:
    first, second = both({}, changes)
    assert expected in first
    assert "oregon" in second


def test_runs_whose_default_names_follow_from_what_differs_still_meet_and_say_it() -> None:
    def described(words: list[str]) -> dict[str, Any]:
        common = ["train.steps=2", "sync=local", f"sites.names=[{','.join(NAMES)}]"]
        config = compose(Config, "train", [*common, *words])
        return {"run": run_name(config), "config": shared_keys(config, {})}

    first, second = both(described([]), described(["sync.every=20", "train.threads=1"]))
    assert "sync.every (30 here, 20 there)" in first
    assert "sync.every (20 here, 30 there)" in second
    assert "train.threads" not in first
    assert both(described([]), described(["train.threads=1", "log.tensorboard=false"])) == [NAMES, NAMES]


def test_another_run_is_refused() -> None:
    first, _ = both({}, {"run": "another"})
    assert "iowa is in another run, another" in first


def test_the_secret_must_be_the_same(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text("a secret\n")
    theirs.write_text("another")
    outcomes = both({"token": str(ours), "wait": 5.0}, {"token": str(theirs), "wait": 5.0})
    assert any("another secret" in str(outcome) for outcome in outcomes)
    assert both({"token": str(ours)}, {"token": str(ours)}) == [NAMES, NAMES]


@pytest.mark.parametrize(("content", "expected"), [(None, "cannot be read"), ("\n", "is empty")])
def test_a_secret_that_is_none(tmp_path: Path, content: str | None, expected: str) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    assert expected in attend(0, f"127.0.0.1:{free_port()}", token=str(path))


def test_whoever_comes_first_waits_and_says_for_whom() -> None:
    store, told = f"127.0.0.1:{free_port()}", []
    threading.Timer(3.0, attend, (0, store)).start()
    assert attend(1, store, told=told) == NAMES
    assert any("waiting for oregon to open the meeting" in line for line in told)


@pytest.mark.parametrize(
    ("site", "expected"), [(0, "iowa did not come within 1 s"), (1, "oregon did not come within 1 s")]
)
def test_waiting_ends(site: int, expected: str) -> None:
    started = time.monotonic()
    assert expected in attend(site, f"127.0.0.1:{free_port()}", wait=1.0)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("again", "code"), [(False, 2), (True, 75)])
def test_a_site_that_has_come_before_is_lost_rather_than_misspelt(again: bool, code: int) -> None:
    sites = SitesConfig(name="iowa", names=NAMES, store=f"127.0.0.1:{free_port()}", wait_seconds=0.2)
    attendance = Attendance("run", 1, 0, CONFIG, again)
    with pytest.raises(SiteAbsent) as caught, meet(sites, LaneConfig(), attendance, tell=lambda line: None):
        pass
    assert caught.value.exit_code == code


def test_a_port_that_is_taken() -> None:
    store = f"127.0.0.1:{free_port()}"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(attend, 0, store, wait=3.0)
        time.sleep(1.0)
        assert "cannot listen on port" in attend(0, store, wait=1.0)
        assert "iowa did not come" in first.result()


def test_what_is_left_of_an_earlier_attempt_is_not_met() -> None:
    """The host opens its store anew and draws a new incarnation; two in a row on one port work."""
    store = f"127.0.0.1:{free_port()}"
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda number: attend(number, store), range(2))) == [NAMES, NAMES]


def test_three_sites_meet() -> None:
    store, names = f"127.0.0.1:{free_port()}", ["a", "b", "c"]
    call: Callable[[int], Any] = lambda number: attend(number, store, names=names)  # noqa: E731
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(call, range(3))) == [names] * 3
