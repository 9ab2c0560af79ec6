"""Supervisors of several nodes: they restart together, replace a node that fails or is lost, and end with one code."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from support.ranks import run_processes, start_process

from isthmus.fault_tolerance.heartbeat import Heartbeat, HeartbeatMonitor, forget_heartbeats, read_heartbeats
from isthmus.files import write_json
from isthmus.launch.agent import Ended, Meeting, Ranks
from isthmus.launch.crew import Alone, Follower, Leader, Order, Timing, blamed
from isthmus.launch.node import Place, _has_begun_anew, _say_started, place_of
from isthmus.launch.rank import share_of
from isthmus.launch.supervise import Supervisor, follow, unwanted
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


@pytest.mark.parametrize(("number", "saves"), [(signal.SIGUSR2, False), (signal.SIGTERM, True)])
def test_ranks_that_take_too_long_to_save_are_ended_where_a_limit_is_near(
    number: signal.Signals, saves: bool, tmp_path: Path
) -> None:
    code = run_processes([(_slow_to_save, (prepared(tmp_path), number))], timeout=300)[0]
    assert code == 85
    assert (tmp_path / "saved").exists() == saves
    log = tmp_path / "logs/supervisor.log"
    assert (log.exists() and "the ranks had no time left to save" in log.read_text()) == (not saves)


_SLOW = """
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(4 if NUMBER == signal.SIGTERM else 600)
    Path("FOLDER/saved").touch()
    sys.exit(85)
NUMBER = int(sys.argv[1])
signal.signal(NUMBER, save)
Path("FOLDER/listening").touch()
time.sleep(600)
"""


def _slow_to_save(folder: str, number: int) -> int:
    ranks = Ranks(1, [], program=("-c", _SLOW.replace("FOLDER", folder), str(int(number))), patience_seconds=1.0)

    def ask() -> None:
        while not Path(folder, "listening").exists():
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    return Supervisor(Config(), Path(folder), ranks, Alone("x")).run()


def test_agents_whose_node_is_lost_before_they_have_met_do_not_wait_for_long(tmp_path: Path) -> None:
    assert run_processes([(_meet_nobody, ())], timeout=300) == [Ended(1, killed=True)]


def _meet_nobody() -> Ended:
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return Ranks(1, [], program=("-c", "pass")).run(Meeting("x-0", 2, f"127.0.0.1:{store.port}", "127.0.0.1", 1.0))


def test_a_frozen_rank_is_ended_also_where_the_first_node_stands_by(tmp_path: Path) -> None:
    assert run_processes([(_stand_by, (prepared(tmp_path),))], timeout=300) == [{1: Ended(-9, killed=True)}]


def _stand_by(folder: str) -> dict[int, Ended]:
    timing = Timing(lost_seconds=600.0)
    leader = Leader(
        Path(folder, "launch"), "x", address="127.0.0.1", port=0, name="n0", expected=2, needed=1, timing=timing
    )

    def follow_it() -> None:
        while leader.hear("failed/0") is None:
            time.sleep(0.1)
        leader.say("ended/0/1", asdict(Ended(-9, killed=True)))

    threading.Thread(target=follow_it, daemon=True).start()
    return leader.collect(Order(0, (1,)), None, lambda: True)


def supervisor_of(folder: Path) -> Supervisor:
    """Of three nodes, two of which are needed."""
    crew = Alone("x")
    crew.names = {0: "n0", 1: "n1", 2: "n2"}
    return Supervisor(Config(), folder, Ranks(1, []), crew, needed=2, can_move=True)


def test_attempts_that_fail_with_the_same_words_are_each_heard(tmp_path: Path) -> None:
    said = {"status": "failed", "exit_code": 1, "rank": 1, "error": "RuntimeError: CUDA error: device lost"}
    supervisor, ends = supervisor_of(tmp_path), {0: Ended(1, 0, (0,)), 1: Ended(1, 1, (1,))}
    supervisor._present()
    for count in range(1, 3):
        before = supervisor._outcome_mark()
        assert supervisor._first_failure((0, 1), ends, before)[2] == {}, "that was the attempt before"
        write_json(tmp_path / "outcome.json", said)
        rank, code, changed = supervisor._first_failure((0, 1), ends, before)
        assert (rank, code, changed) == (1, 1, said)
        supervisor._blame((0, 1), ends, changed, -1)
        assert supervisor._excluded == ({1: "n1"} if count == 2 else {})


def test_ranks_that_abort_because_of_another_hide_neither_its_error_nor_a_lost_node(tmp_path: Path) -> None:
    supervisor, aborted = supervisor_of(tmp_path), Ended(-signal.SIGABRT, 0, (0,))
    assert supervisor._first_failure((0, 1), {0: aborted, 1: Ended(-11, 1, (1,))}, None)[:2] == (1, -11)
    assert supervisor._first_failure((0, 1), {0: aborted, 1: Ended(84)}, None)[1] == 84
    assert supervisor._first_failure((0, 1), {0: aborted, 1: Ended(1, 1, (1,))}, None)[:2] == (0, -signal.SIGABRT)
    write_json(tmp_path / "outcome.json", {"exit_code": 75, "rank": 1})
    assert supervisor._first_failure((0, 1), {0: aborted, 1: Ended(1, 1, (1,))}, None)[:2] == (1, 75)


def test_all_nodes_that_are_lost_are_left_out_and_named(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path)
    (tmp_path / "launch").mkdir()
    supervisor._present()
    supervisor._blame((0, 1, 2), {0: Ended(-6, 0, (0,)), 1: Ended(84), 2: Ended(84)}, {}, -1)
    assert supervisor._chosen() is None
    assert supervisor._lacks_nodes() == 84
    assert (tmp_path / "launch/excluded").read_text() == "n1\nn2\n"


def test_a_stop_that_a_lost_node_spoils_is_queued_again(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path)
    assert [supervisor._after_request(code) for code in (84, -9, 86, 85, 89)] == [85, 85, 85, 85, 89]


def test_ranks_that_die_on_one_node_after_another_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    for code, step in ((84, 7), (88, 7), (84, 9)):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
        supervisor = supervisor_of(tmp_path)
        supervisor._present()
        for _ in range(2):
            supervisor._blame((0, 1), {0: Ended(killed=True), 1: Ended(-9, 1, (1,))}, {}, step)
        supervisor._leave_out(2, "for the test")
        assert supervisor._chosen() is None
        assert supervisor._lacks_nodes() == code


def test_beginning_anew_is_over_once_the_old_checkpoints_are_set_aside(tmp_path: Path) -> None:
    old = tmp_path / "checkpoints/step-0000000004-a0001"
    old.mkdir(parents=True)
    (tmp_path / "launch").mkdir()
    config = Config()
    assert unwanted(config, tmp_path) == []
    config.checkpoint.resume = "never"
    assert unwanted(config, tmp_path) == [old]
    assert not _has_begun_anew(tmp_path, 0, "ab")
    _say_started(tmp_path, Place(0, 1, "n0", "ab-1.0"), "ab", unwanted(config, tmp_path))
    assert not _has_begun_anew(tmp_path, 0, "ab"), "it died before it had set them aside"
    old.rename(old.with_name(f"abandoned-{old.name}"))
    assert _has_begun_anew(tmp_path, 0, "ab")
    assert not _has_begun_anew(tmp_path, 0, "cd"), "another launch"


def test_who_is_blamed() -> None:
    fine, killed, died = Ended(), Ended(-9, 1, (1,), killed=True), Ended(-11, 1, (1,))
    assert blamed([0, 1], {0: fine, 1: died}, None) == 1
    assert blamed([0, 1], {0: killed, 1: Ended(1, 1, (1,))}, None) is None, "an error of the program is nobody's"
    assert blamed([0, 1], {0: fine, 1: Ended(1, 3, (2, 3))}, cause=3) == 1, "its device is broken"
    assert blamed([0, 1], {0: killed, 1: Ended(84)}, None) == 1
    aborted = Ended(-signal.SIGABRT, 0, (0,))
    assert blamed([0, 1], {0: aborted, 1: Ended(84)}, None) == 1
    assert blamed([0, 1], {0: aborted, 1: died}, None) == 1, "NCCL aborts the others"
    assert blamed([0, 1], {0: aborted, 1: Ended(1, 1, (1,))}, None) == 0
    assert blamed([0, 1], {0: aborted, 1: Ended(-signal.SIGABRT, 1, (1,))}, None) is None


def test_a_place_comes_from_srun_or_from_the_command_line() -> None:
    srun = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "17", "SLURMD_NODENAME": "gpu7"}
    place = place_of(srun, None, None, "ab")
    assert (place.node, place.nodes, place.name, place.launch_id) == (1, 4, "gpu7", "ab-17.0")
    again = place_of({**srun, "SLURM_RESTART_COUNT": "2"}, None, None, "ab")
    assert again.launch_id == "ab-17.2", "an earlier meeting is not joined"
    assert place_of(srun, 3, 2, "ab").node == 2
    assert (place_of({}, None, None, "ab").node, place_of({}, None, None, "ab").nodes) == (0, 1)


def test_a_rank_that_keeps_to_its_cores_runs_any_module_and_ends_with_its_code() -> None:
    for words, code in ((["json.tool", "--no-ensure-ascii"], 0), (["json.tool", "--unknown"], 2)):
        command = [sys.executable, "-m", "isthmus.launch.rank", "--affinity", "cores", *words]
        place = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        result = subprocess.run(command, input=b"[1]", capture_output=True, env={**os.environ, **place}, check=False)
        assert result.returncode == code, result.stderr


def test_ranks_share_the_cores() -> None:
    assert [list(share_of([4, 5, 6, 7, 12], rank, 2)) for rank in range(2)] == [[4, 5], [6, 7, 12]]
    assert [list(share_of([4, 5], rank, 3)) for rank in range(3)] == [[4], [5], [4]]


def test_heartbeats_show_the_step_and_that_a_rank_has_frozen(tmp_path: Path) -> None:
    now = 0.0
    (tmp_path / "heartbeats").mkdir()
    Heartbeat(tmp_path, 1)._write()
    Heartbeat(tmp_path, 7)._write()  # of an attempt with more ranks
    forget_heartbeats(tmp_path, 2)
    assert [beat["rank"] for beat in read_heartbeats(tmp_path)] == [1]
    Heartbeat(tmp_path, 7)._write()
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
