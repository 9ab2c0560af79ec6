"""Runs a worker in every site of a shaped network and brings back what each has measured."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from isthmus.launch.lab.links import Links, Shape
from isthmus.launch.lab.network import ShapedNetwork

WORKER = Path(__file__).parent / "wan_worker.py"


class Wan:
    """Two or more sites joined by links that are all alike, until closed; use from one thread."""

    def __init__(self, sites: int, **shape: Any) -> None:
        self.names = [f"site{number + 1}" for number in range(sites)]
        self.network = ShapedNetwork(Links.uniform(self.names, Shape(**shape)))

    def reshape(self, **shape: Any) -> None:
        """Change all links."""
        for source in range(len(self.names)):
            for target in range(len(self.names)):
                if source != target:
                    self.network.reshape(source, target, Shape(**shape))

    def run(self, job: dict[str, Any], *, script: Path = WORKER, timeout: float = 3600.0) -> list[dict[str, Any]]:
        """Run a job in all sites; return each one's answer.

        Raises:
            RuntimeError: a worker failed; with the end of what it printed.
        """
        with tempfile.TemporaryDirectory(prefix="isthmus-wan-") as folder:
            processes, logs = [], []
            for site in range(len(self.names)):
                told = {**job, "site": site, "names": self.names, "addresses": list(self.network.addresses)}
                told["out"] = f"{folder}/{site}.json"
                logs.append(Path(folder, f"{site}.log"))
                with logs[-1].open("wb") as log:
                    command = [sys.executable, str(script), json.dumps(told)]
                    processes.append(self.network.start(site, command, output=log))
            try:
                for process, log_path in zip(processes, logs, strict=True):
                    if process.wait(timeout):
                        raise RuntimeError(log_path.read_text(errors="replace")[-3000:])
            finally:
                for process in processes:
                    if process.poll() is None:
                        process.kill()
                        process.wait()
            return [json.loads(Path(folder, f"{site}.json").read_text()) for site in range(len(self.names))]

    def wire_bytes(self) -> dict[str, int]:
        """Return what the relay has counted from the first site to the second."""
        return dict(self.network.settled_counts()[0, 1])

    def close(self) -> None:
        self.network.close()
