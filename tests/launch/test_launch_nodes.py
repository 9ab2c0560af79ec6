"""Supervisors of several nodes: they restart together, replace a node that fails or is lost, and end with one code."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support.ranks import run_processes, start_process

from isthmus.fault_tolerance.heartbeat import Heartbeat, HeartbeatMonitor, read_heartbeats
from isthmus.launch.agent import Ended, Ranks
from isthmus.launch.crew import Alone, Follower, Leader, Timing, blamed
from isthmus.launch.node import place_of
from isthmus.launch.rank import share_of
from isthmus.launch.supervise import Supervisor, follow
from isthmus.train.config import Config

TIMING = Timing(join_seconds=120.0, lost_seconds=5.0, grace_seconds=1.0)
# A rank without torch: it does what PLAN says for its node and attempt, and else ends well.
RANK = """
import json, os, signal, sys, time
plan, node, folder = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
attempt = os.environ["TORCHELASTIC_RUN_ID"].rpartition("-")[2]
with open(f"{folder}/calls", "a") as file:
    file.write(f"{node} {attempt} {os.environ['RANK']} {os.environ['WORLD_SIZE']}\\n")
what = plan.get(f"{node}.{attempt}", plan.get(f"*.{attempt}"))
if what == "die":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "lose":
    os.kill(os.getppid(), signal.SIGKILL)
elif what == "hang":
    time.sleep(600)
elif what:
    sys.exit(int(what))
"""


def run_node(node: int, nodes: int, needed: int, folder: str, plan: dict[str, str]) -> int:
    """Lead or follow, with one rank a node."""
    program = ("-c", RANK, json.dumps(plan), str(node), folder)
    ranks = Ranks(1, [], program=program)
    launch = Path(folder, "launch")
    if node:
        return follow(ranks, Follower(launch, "x", node=node, name=f"n{node}", timing=TIMING), grace_seconds=1.0)
    config = Config()
    config.restart.delay_seconds = 0.1
    leader = Leader(launch, "x", address="127.0.0.1", port=0, name="n0", expected=nodes, needed=needed, timing=TIMING)
    leader.wait()
    return Supervisor(config, Path(folder), ranks, leader, needed=needed, grace_seconds=1.0).run()


def calls(folder: Path) -> set[tuple[str, str]]:
    """(node, attempt) of every rank that was started."""
    return {tuple(line.split()[:2]) for line in (folder / "calls").read_text().splitlines()}  # type: ignore[misc]


def prepared(folder: Path) -> str:
    (folder / "launch").mkdir()
    return str(folder)


def test_a_rank_that_dies_ends_the_other_nodes_ranks_and_all_start_again(tmp_path: Path) -> None:
    # Node 0's rank would wait for ever for the one that has died.
    plan = {"1.0": "die", "0.0": "hang"}
    args = [(run_node, (node, 2, 2, prepared(tmp_path) if node == 0 else str(tmp_path), plan)) for node in range(2)]
    assert run_processes(args, timeout=300) == [0, 0]
    assert calls(tmp_path) == {("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")}
    state = json.loads((tmp_path / "launch/supervisor.json").read_text())
    assert (state["state"], state["exit_code"], state["attempts"], state["nodes"]) == ("ended", 0, 2, ["n0", "n1"])
    assert {line.split()[3] for line in (tmp_path / "calls").read_text().splitlines()} == {"2"}


def test_a_node_on_which_ranks_keep_dying_is_replaced_by_a_spare(tmp_path: Path) -> None:
    folder, plan = prepared(tmp_path), {"1.0": "die", "1.1": "die", "0.0": "1", "0.1": "1"}
    assert run_processes([(run_node, (node, 3, 2, folder, plan)) for node in range(3)], timeout=300) == [0, 0, 0]
    assert calls(tmp_path) == {("0", "0"), ("1", "0"), ("0", "1"), ("1", "1"), ("0", "2"), ("2", "2")}
    assert json.loads((tmp_path / "launch/supervisor.json").read_text())["excluded"] == ["n1"]


def test_a_node_that_is_lost_is_replaced_by_a_spare_or_ends_the_job(tmp_path: Path) -> None:
    for nodes, code in ((3, 0), (2, 84)):
        folder = tmp_path / str(nodes)
        folder.mkdir()
        prepared(folder)
        plan = {"1.0": "lose", "0.0": "hang"}
        started = [start_process(run_node, (node, nodes, 2, str(folder), plan)) for node in range(nodes)]
        try:
            pipe = started[0][1]
            assert pipe.poll(300)
            assert pipe.recv() == (False, code)
        finally:
            for process, _ in started:
                process.kill()
                process.join()
        assert (("2", "1") in calls(folder)) == (nodes == 3)
        if code:
            assert (folder / "launch/excluded").read_text() == "n1\n"


@pytest.mark.parametrize("code", [2, 85, 89])
def test_a_code_that_ends_the_run_ends_all_nodes(code: int, tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    plan = {"*.0": str(code)}
    # The followers leave with 0, so that the leader's code is the one that a scheduler sees.
    assert run_processes([(run_node, (node, 2, 2, folder, plan)) for node in range(2)], timeout=300) == [code, 0]


def test_ranks_that_do_not_heed_a_request_are_ended_after_a_while(tmp_path: Path) -> None:
    (code, seconds) = run_processes([(_stubborn, (prepared(tmp_path),))], timeout=300)[0]
    assert code == 85
    assert seconds < 60


def _stubborn(folder: str) -> tuple[int, float]:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    ranks = Ranks(1, [], program=("-c", deaf), patience_seconds=1.0)
    threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    started = time.monotonic()
    return Supervisor(Config(), Path(folder), ranks, Alone("x-0")).run(), time.monotonic() - started


def test_who_is_blamed() -> None:
    fine, killed, died = Ended(), Ended(-9, 1, (1,), killed=True), Ended(-11, 1, (1,))
    assert blamed([0, 1], {0: fine, 1: died}, None) == 1
    assert blamed([0, 1], {0: killed, 1: Ended(1, 1, (1,))}, None) is None, "an error of the program is nobody's"
    assert blamed([0, 1], {0: fine, 1: Ended(1, 3, (2, 3))}, cause=3) == 1, "its device is broken"
    assert blamed([0, 1], {0: killed, 1: Ended(84)}, None) == 1


def test_a_place_comes_from_srun_or_from_the_command_line() -> None:
    srun = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "17", "SLURMD_NODENAME": "gpu7"}
    place = place_of(srun, None, None, "ab")
    assert (place.node, place.nodes, place.name, place.launch_id) == (1, 4, "gpu7", "ab-17.0")
    again = place_of({**srun, "SLURM_RESTART_COUNT": "2"}, None, None, "ab")
    assert again.launch_id == "ab-17.2", "an earlier meeting is not joined"
    assert place_of(srun, 3, 2, "ab").node == 2
    assert (place_of({}, None, None, "ab").node, place_of({}, None, None, "ab").nodes) == (0, 1)


def test_ranks_share_the_cores() -> None:
    assert [list(share_of([4, 5, 6, 7, 12], rank, 2)) for rank in range(2)] == [[4, 5], [6, 7, 12]]
    assert [list(share_of([4, 5], rank, 3)) for rank in range(3)] == [[4], [5], [4]]


def test_heartbeats_show_the_step_and_that_a_rank_has_frozen(tmp_path: Path) -> None:
    now = 0.0
    Heartbeat(tmp_path, 7)._write()  # of an attempt with more ranks
    heartbeat = Heartbeat(tmp_path, 1, every_seconds=3600.0)
    pulse = HeartbeatMonitor(tmp_path, silence_seconds=60.0, clock=lambda: now)
    with heartbeat.beating():
        assert pulse.lost() is None
        now = 50.0
        assert pulse.lost() is None
        heartbeat.step(12)
        heartbeat._write()
        beat = read_heartbeats(tmp_path)[0]
        assert (beat["rank"], beat["step"], beat["doing"]) == (1, 12, "training")
        now = 70.0
        assert pulse.lost() is None
        now = 125.0
        assert pulse.lost() is None, "it has been seen at 70"
        now = 140.0
        said = pulse.lost()
        assert said is not None
        assert "rank 1 on" in said
        assert "60 s" in said
    now = 300.0
    assert pulse.lost() is None, "one that has ended is not silent"
    assert HeartbeatMonitor(tmp_path, silence_seconds=0.0, clock=lambda: 1e9).lost() is None, "0: never"
