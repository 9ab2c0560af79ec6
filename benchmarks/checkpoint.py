"""What a checkpoint costs: the stall of a save, its bytes, the speed of `verify`, and the time after a kill.

    python benchmarks/checkpoint.py stall [--model tiny|124m] [--rounds 5]   beside torch's and Megatron's async save
    python benchmarks/checkpoint.py verify [--gigabytes 1.5]                 beside dd and cat of the same files
    python benchmarks/checkpoint.py restart [--rounds 3]                     beside a bare start

Two ranks each. The stall is the time of a save and the next 20 steps, less that of 20 steps before and after it
without one: a call that returns at once and then slows training down gains nothing. All contenders save the same
numbers, in turn in one run. Each reading of `verify` begins with an empty page cache (it needs root).
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

MODELS = {
    "nano": ["model=nano", "train.micro_batch=2", "train.global_batch=4", "train.sequence_length=64"],  # a rehearsal
    "tiny": ["model=tiny", "train.micro_batch=1", "train.global_batch=2", "train.sequence_length=64"],
    "124m": ["model=124m", "train.micro_batch=1", "train.global_batch=2", "train.sequence_length=64"],
}
STEPS = 20


def stall(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Return the seconds that a save costs each contender, and what it writes."""
    rows = _ranks(scratch, [*MODELS[options.model], f"data.cache_dir={scratch}/cache"], options)
    state = rows[0]["state_bytes"]
    contenders: dict[str, Any] = {}
    for name in dict.fromkeys(row["contender"] for row in rows[1:]):
        own = [row for row in rows[1:] if row["contender"] == name]
        stalls = [row["with_save_s"] - row["quiet_s"] for row in own]
        contenders[name] = {
            "stall_s": round(statistics.median(stalls), 3),
            "stalls_s": [round(value, 3) for value in stalls],
            "steps_s": round(statistics.median(row["quiet_s"] for row in own), 3),
            "call_s": round(statistics.median(row["call_s"] for row in own), 3),
            "durable_s": round(statistics.median(row["durable_s"] for row in own), 3),
            "bytes_over_state": round(own[-1]["bytes"] / state, 4),
        }
        print(name, contenders[name], flush=True)
    result: dict[str, Any] = {"model": options.model, "state_bytes": state, "contenders": contenders}
    others = [value["stall_s"] for name, value in contenders.items() if name != "isthmus"]
    if others and "isthmus" in contenders:
        result["stall over the better of the others"] = round(contenders["isthmus"]["stall_s"] / min(others), 3)
    return result


def verify(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Return bytes per second of reading and hashing a checkpoint, and of only reading it, from an empty cache."""
    folder = _made_checkpoint(scratch, int(options.gigabytes * 1e9))
    files = sorted(str(path) for path in folder.glob("*.safetensors"))
    size = sum(os.path.getsize(file) for file in files)
    check = (
        "import sys, time; from pathlib import Path; from isthmus.fault_tolerance.manifest import *; "
        "folder = Path(sys.argv[1]); manifest = read_manifest(folder); began = time.perf_counter(); "
        "check_hashes(folder, manifest, range(manifest.ranks), direct=True); print(time.perf_counter() - began)"
    )
    commands = {
        "hashed by isthmus": [sys.executable, "-c", check, str(folder)],
        "isthmus checkpoint verify, whole command": [
            *(sys.executable, "-m", "isthmus.launch.cli", "checkpoint", "verify", str(folder), "--json"),
        ],
        "dd, direct": [
            "sh",
            "-c",
            'for f; do dd if="$f" of=/dev/null bs=16M iflag=direct status=none; done',
            "-",
            *files,
        ],
        "dd": ["sh", "-c", 'for f; do dd if="$f" of=/dev/null bs=16M status=none; done', "-", *files],
        "cat": ["sh", "-c", 'cat "$@" > /dev/null', "-", *files],
    }
    speeds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3")
            began = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - began
            # Without the start of the interpreter, which does not grow with the bytes.
            seconds = float(done.stdout) if name == "hashed by isthmus" else seconds
            speeds[name].append(size / seconds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    reading = max(medians["dd, direct"], medians["dd"], medians["cat"])
    return {
        "bytes": size,
        "GB/s": {name: round(value / 1e9, 3) for name, value in medians.items()},
        "rounds, GB/s": {name: [round(value / 1e9, 3) for value in values] for name, values in speeds.items()},
        "hashed over the fastest reading": round(medians["hashed by isthmus"] / reading, 3),
    }


def restart(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Return the seconds from a kill to the next step by phase, and those of a bare start."""
    from launched import Launched

    words = [*MODELS[options.model], f"data.cache_dir={scratch}/cache", "log.tensorboard=false", "train.steps=100000"]
    words += ["checkpoint.every_steps=5"]
    chooser = random.Random(0)
    rounds: list[dict[str, float]] = []
    floors: list[dict[str, float]] = []
    for number in range(options.rounds):
        run = Launched(scratch / f"run{number}", words)
        try:
            run.wait_for_step(1)
            floors.append(_phases(run, run.began))
            if number == 0:
                run.wait_for_step(11)
            else:
                run.wait_for_step(8)
            time.sleep(0.5)
            killed = run.kill_one(chooser)
            assert killed is not None
            while len([row for row in run.rows() if row["what"] == "begin"]) < 2:
                time.sleep(0.05)
            while run.rows()[-1]["what"] != "step":
                time.sleep(0.01)
            rounds.append(_phases(run, killed))
        finally:
            run.stop()
            shutil.rmtree(scratch / f"run{number}", ignore_errors=True)
    floors = floors[1:] or floors  # the first has trained the tokenizer
    after = {name: round(statistics.median(row[name] for row in rounds), 2) for name in rounds[0]}
    floor = {name: round(statistics.median(row[name] for row in floors), 2) for name in floors[0]}
    ranks_alone = sum(floor[name] for name in ("import", "build and load", "first step"))
    return {
        "after a kill": after,
        "bare start": floor,
        "over the bare start": round(after["all"] / floor["all"], 3),
        # The launcher's own start and check of everything is not done again: a floor without it is the stricter one.
        "over a bare start of the ranks alone": round(after["all"] / ranks_alone, 3),
    }


def _phases(run: Any, since: float) -> dict[str, float]:
    """Split the time from `since` to the first step of the attempt that began last."""
    rows = run.rows()
    begin = max(number for number, row in enumerate(rows) if row["what"] == "begin")
    first = next(row for row in rows[begin:] if row["what"] == "step")
    began = rows[begin]
    imported = (run.folder / "outcome.json").stat().st_mtime  # the first thing that a rank writes when it can
    noticed = [when for when, line in run.errors if "starting again" in line and when > since]
    phases = {}
    if noticed:
        phases["detect"] = noticed[0] - since
    phases["start"] = began["started"] - (noticed[0] if noticed else since)
    phases["import"] = imported - began["started"]
    phases["build and load"] = began["time"] - imported
    phases["first step"] = first["time"] - began["time"]
    phases["all"] = first["time"] - since
    return phases


def _ranks(scratch: Path, words: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    worker = str(Path(__file__).with_name("checkpoint_worker.py"))
    arguments = ["--folder", str(scratch / "runs"), "--rounds", str(options.rounds), "--steps", str(STEPS)]
    processes = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, worker, *arguments, "--only", options.only, *words]
        # Into files: what others have started outlives the ranks, and would keep a pipe open.
        with (scratch / f"{rank}.out").open("wb") as out, (scratch / f"{rank}.err").open("wb") as err:
            processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err, start_new_session=True))
    codes = [process.wait() for process in processes]
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if any(codes):
        sys.exit((scratch / "0.err").read_text()[-4000:])
    lines = (scratch / "0.out").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def _made_checkpoint(scratch: Path, size: int) -> Path:
    """Write a checkpoint of two ranks that holds random numbers."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from support.checkpoints import new_store
    from support.crash_ranks import manifest_of

    from isthmus.fault_tolerance.commit import commit, write_part
    from isthmus.fault_tolerance.records import Record
    from isthmus.fault_tolerance.snapshot import Snapshot

    store = new_store(scratch)
    folder = store.path(1, 1)
    count = size // 8
    for rank in range(2):
        snapshot = Snapshot()
        record = Record("parameter", "weight", (2 * count,), (0,), (2 * count,), count * rank, count * (rank + 1))
        snapshot.fill([(record, torch.randn(count))], {})
        write_part(store.fs, folder, rank, snapshot.view())
        snapshot.close()
    commit(store.fs, folder, manifest_of(1, 1), deadline_seconds=60, alive=lambda: True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["stall", "verify", "restart"])
    parser.add_argument("--model", choices=list(MODELS), default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, default=1.5)
    parser.add_argument("--only", default="", help="of the contenders, those whose name has this in it")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure (where temporary files are)")
    parser.add_argument("--json", type=Path, help="a file whose entry for this measurement is replaced")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    measure = {"stall": stall, "verify": verify, "restart": restart}[options.what]
    with tempfile.TemporaryDirectory(prefix="isthmus-checkpoint-", dir=options.scratch) as folder:
        result = measure(options, Path(folder))
    print(json.dumps(result, indent=1))
    if options.json:
        name = options.what if options.what == "verify" else f"{options.what} {options.model}"
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(known | {name: result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
