"""Every place where a save of two ranks can end: kills, power cuts; and whether a weaker protocol would be noticed.

python benchmarks/crash_points.py [--json FILE]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.crash_ranks import NEW_STEP, OLD_STEP
from support.crashes import Prepared, interrupted_pairs, kill_everywhere, kill_points, record
from support.power import Disk, Restarts, cut_power_everywhere, exchanged, without


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
    result["seconds"] = round(time.perf_counter() - started, 1)
    for name, value in result.items():
        print(f"{name}: {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(scratch: Path) -> dict[str, object]:
    prepared = Prepared.make(_made(scratch / "prepared"))
    log = record(prepared.copy_to(scratch / "recorded"))
    points = kill_points(log)
    resumed = kill_everywhere(prepared, points, _made(scratch / "kills"))
    restarts = Restarts(_made(scratch / "power"))
    problems = []
    for happened in interrupted_pairs(log):
        disk = Disk(prepared.root)
        for operation in happened:
            disk.apply(operation)
        keep = next(keep for name, keep in disk.losses() if name == "everything")
        problems.append(restarts.try_from(disk.survives(keep), disk.acknowledged))
    assert not any(problems), problems
    cases, wrong = cut_power_everywhere(prepared.root, log, restarts)
    syncs = [number for number, operation in enumerate(log) if operation.name == "fsync"]
    weaker = {f"without {log[number]}": without(log, number) for number in syncs}
    for first in range(len(log) - 1):
        if log[first].rank == log[first + 1].rank:
            weaker[f"{log[first]} after {log[first + 1]}"] = exchanged(log, first, first + 1)
    unnoticed = [
        name
        for name, changed in weaker.items()
        if not cut_power_everywhere(prepared.root, changed, restarts, first_only=True)[1]
    ]
    return {
        "operations": len(log) - 1,
        "kill points": len(points),
        "resumed the new step": resumed.count(NEW_STEP),
        "resumed the acknowledged one before it": resumed.count(OLD_STEP),
        "moments at which both ranks die": len(problems),
        "power cuts": cases,
        "power cuts that lost something": len(wrong),
        "weaker protocols": len(weaker),
        "of these unnoticed (their order is free)": unnoticed,
    }


def _made(path: Path) -> Path:
    path.mkdir()
    return path


if __name__ == "__main__":
    main()
