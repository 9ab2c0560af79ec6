"""`isthmus launch` over ssh between two sites of the lab: namespaces that a thin, long, lossy link joins.

python benchmarks/launch_lab.py [--bandwidth 50] [--rtt 20] [--loss 0]

As root, with sshd (Debian: openssh-server). An sshd runs in each site; the launch is started in the first.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.sshd import Sshd, prepare_sshd

from isthmus.launch.lab.links import Links, Shape
from isthmus.launch.lab.network import ShapedNetwork

STEPS = 8
RUN = [
    "launch=torchrun",
    "launch.ssh=true",
    "sites=sites.yaml",
    "sync=exact",
    "run.name=r",
    "model=nano",
    f"train.steps={STEPS}",
    "train.global_batch=4",
    "train.sequence_length=32",
    "log.tensorboard=false",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bandwidth", type=float, default=50.0)
    parser.add_argument("--rtt", type=float, default=20.0)
    parser.add_argument("--loss", type=float, default=0.0)
    arguments = parser.parse_args()
    shape = Shape(bandwidth_mbps=arguments.bandwidth, rtt_ms=arguments.rtt, loss=arguments.loss)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        root = Path(scratch)
        network = ShapedNetwork(Links.uniform(["one", "two"], shape))
        stack.callback(network.close)
        sshd = prepare_sshd(root)
        started = [network.start(site, sshd.command, output=None) for site in range(2)]
        for process in started:
            stack.callback(process.wait)
            stack.callback(process.terminate)
        losses = _train(root, sshd, network)
    print(f"{len(losses)} steps in both sites over {shape.describe()}, losses {losses[0]:.4f} to {losses[-1]:.4f}")


def _train(root: Path, sshd: Sshd, network: ShapedNetwork) -> list[float]:
    at = {}
    for name, address in zip(("one", "two"), network.addresses, strict=True):
        (root / name).mkdir()
        at[name] = {
            "hosts": [address],
            "ssh_options": sshd.options,
            "dir": str(root / name),
            "python": sys.executable,
            "threads": 1,
            "env": {"GLOO_SOCKET_IFNAME": "lo"},
            "lane_interface": address,
        }
    (root / "sites.yaml").write_text(json.dumps({"store": f"{network.addresses[0]}:29400", "at": at}))
    script = f"cd {root} && exec {sys.executable} -m isthmus.launch.cli launch {' '.join(RUN)}"
    launcher = network.start(0, ["bash", "-c", script], output=None)
    assert launcher.wait() == 0, "the launch was refused"
    deadline = time.monotonic() + 900
    paths = [root / name / "runs/r" / name for name in at]
    while not all(_status(path) in ("completed", "failed", "refused") for path in paths):
        assert time.monotonic() < deadline, "they have not ended"
        time.sleep(0.5)
    rows = [[json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()] for path in paths]
    assert rows[0] == rows[1], "the sites differ"
    assert len(rows[0]) == STEPS
    return rows[0]


def _status(folder: Path) -> str:
    try:
        return str(json.loads((folder / "outcome.json").read_text())["status"])
    except (OSError, ValueError):
        return ""


if __name__ == "__main__":
    main()
