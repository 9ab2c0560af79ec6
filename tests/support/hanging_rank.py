"""A rank that goes through a few steps and then hangs in the next one: `hanging_rank.py FOLDER RANK SIZE HOW`.

It needs no torch: a watchdog looks at phases and stacks, whatever the rank does.
"""

import logging
import sys
import time
from pathlib import Path

from isthmus.fault_tolerance.chaos import _hold_lock
from isthmus.fault_tolerance.config import WatchdogConfig
from isthmus.fault_tolerance.watchdog import Hung, Watchdog
from isthmus.files import write_json
from isthmus.processes import attempt_id

FLOOR_SECONDS = 1.5


def read_a_shard_for_ever(how: str) -> None:
    if how == "lock":
        _hold_lock(600)
    time.sleep(600)


def main() -> None:
    folder, rank, size, how = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    (folder / "logs").mkdir(exist_ok=True)
    if rank == 0:
        write_json(folder / "outcome.json", {"status": "running", "attempt_id": attempt_id()})
    handler = logging.FileHandler(folder / "logs" / f"rank-{rank:05d}.log")
    watchdog = Watchdog(
        WatchdogConfig(first_seconds=60, grace_seconds=10),
        floor_seconds=float(sys.argv[6]) if len(sys.argv) > 6 else FLOOR_SECONDS,
        floors={},
        suspicion_seconds=float(sys.argv[5]) if len(sys.argv) > 5 else FLOOR_SECONDS,
        rank=rank,
        size=size,
        folder=folder,
        log=handler.stream,
    )
    print("started", flush=True)
    sys.stdin.readline()  # until all ranks are there
    for step in range(1, 5):
        watchdog.enter("data", step)
        watchdog.enter("compute", step)
    watchdog.enter("data", 5)
    if how == "waits":  # for the others, which do not come
        watchdog.enter("compute", 5)
        time.sleep(600)
    if how == "late":  # but it comes
        time.sleep(6)
        return
    if how == "patient":
        watchdog.enter("compute", 5)
        time.sleep(6)
        return
    if how == "timeout":
        watchdog.enter("compute", 5)
        try:
            watchdog.explain(RuntimeError("Timed out waiting 15000ms for recv operation to complete"))
        except Hung as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
    read_a_shard_for_ever(how)


if __name__ == "__main__":
    main()
