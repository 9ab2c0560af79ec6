"""A real Slurm of up to three nodes on this machine, from the distribution's packages: slurmctld, slurmd and munge."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.ranks import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "scancel", "srun")
# cred_expire: a requeued job waits until its old credential has expired.
_CONFIGURATION = """\
ClusterName=isthmus
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
ReturnToService=2
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/d.%n.log
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
SlurmctldTimeout=30
SlurmdTimeout=20
KillWait=20
MinJobAge=600
JobRequeue=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs={cpus} RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs={cpus} RealMemory=4000 State=UNKNOWN
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={n3} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=p Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
"""


class Unavailable(Exception):
    """No Slurm here; says why."""


class Slurm:
    """The running daemons, and the commands that talk to them."""

    def __init__(self, folder: Path, nodes: Sequence[str]) -> None:
        self.folder, self._nodes = folder, nodes
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._configure()
        self._start("munged", self._munge())
        _wait(lambda: (folder / "munge.sock").exists(), "munged", folder / "munge.log")
        self._start("slurmctld", ["slurmctld", "-D"])
        for node in nodes:
            self.start_node(node)
        _wait(self._idle, "Slurm", folder / "ctld.log")

    def run(self, *words: str) -> str:
        """Run one of Slurm's commands and return what it prints."""
        result = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{words}: {result.stderr}"
        return result.stdout.strip()

    def state(self, job: str) -> str:
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def wait_for(self, job: str, states: set[str], timeout: float = 120.0) -> str:
        """Wait until a job is in one of the states, and return it."""
        deadline = time.monotonic() + timeout
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, not {states}: {self.tail()}"
            time.sleep(0.2)
        return state

    def start_node(self, node: str) -> None:
        self._start(node, ["slurmd", "-D", "-N", node])

    def lose_node(self, node: str) -> None:
        """Kill a node's daemon and everything that it has started, as a power cut would."""
        daemon = self._daemons.pop(node)
        for process in [*_below(daemon.pid), *self._steps_of(node), daemon.pid]:
            subprocess.run(["kill", "-KILL", str(process)], capture_output=True)
        daemon.wait()

    def step_daemons(self, node: str) -> list[int]:
        """Return the slurmstepd processes of a node's job steps (not those of the batch script)."""
        found = set()
        for process in self._steps_of(node):
            # The daemon has no variables of the node itself: it is the parent of the first one that has.
            parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            command = Path(f"/proc/{parent}/cmdline").read_bytes()
            if b"slurmstepd" in command and b".batch" not in command:
                found.add(parent)
        assert found, f"{node} has no step"
        return sorted(found)

    def tail(self) -> str:
        return "\n".join((self.folder / "ctld.log").read_text().splitlines()[-10:])

    def close(self) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, capture_output=True, timeout=60)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self._left():
            subprocess.run(["kill", "-KILL", str(process)], capture_output=True)

    def _configure(self) -> None:
        ports = {name: free_port() for name in ("controller", "n1", "n2", "n3")}
        host = socket.gethostname()
        text = _CONFIGURATION.format(host=host, folder=self.folder, cpus=os.cpu_count(), **ports)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "ctld").mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)

    def _munge(self) -> list[str]:
        where = self.folder
        # As root, and in a folder that it does not know: it has to be told twice.
        return [
            "munged",
            "--foreground",
            "--force",
            f"--key-file={where}/munge.key",
            f"--socket={where}/munge.sock",
            f"--pid-file={where}/munge.pid",
            f"--seed-file={where}/munge.seed",
            f"--log-file={where}/munge.log",
        ]

    def _start(self, name: str, words: list[str]) -> None:
        log = (self.folder / f"{name}.out").open("wb")
        self._daemons[name] = subprocess.Popen(
            words, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def _idle(self) -> bool:
        result = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%N %T"], env=self.environment, capture_output=True, text=True
        )
        return all(f"{node} idle" in result.stdout for node in self._nodes)

    def _left(self) -> list[int]:
        """Daemons of steps and tasks outlive slurmd."""
        ours = f"SLURM_CONF={self.folder}/slurm.conf\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if ours in path.read_bytes() and int(path.parent.name) != os.getpid():
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def _steps_of(self, node: str) -> list[int]:
        """slurmstepd and tasks leave slurmd's process group, and are no longer its children."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes()
                environment = (path.parent / "environ").read_bytes()
            except OSError:
                continue
            if str(self.folder).encode() not in environment:
                continue  # another Slurm's
            if f"SLURMD_NODENAME={node}".encode() in environment or f"slurmstepd-{node}".encode() in command:
                found.append(int(path.parent.name))
        return found


@contextmanager
def running_slurm(nodes: Sequence[str] = ("n1", "n2")) -> Iterator[Slurm]:
    """Yield a running Slurm with these of its three nodes.

    Raises:
        Unavailable: its programs are not there, or this is not root.
    """
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        raise Unavailable(f"no {', '.join(missing)} here (Debian: slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        raise Unavailable("Slurm's daemons are started as root")
    os.environ["PATH"] = _path()
    folder = Path(tempfile.mkdtemp(prefix="isthmus-slurm-"))
    folder.chmod(0o755)
    slurm = Slurm(folder, nodes)
    try:
        yield slurm
    finally:
        slurm.close()
        shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _below(process: int) -> list[int]:
    found, waiting = [], [process]
    while waiting:
        for path in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            children = [int(word) for word in path.read_text().split()]
            found += children
            waiting += children
    return found


def _wait(ready: Callable[[], bool], what: str, log: Path, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
        words = log.read_text()[-2000:] if log.exists() else "nothing"
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} did not begin: {words}")
        time.sleep(0.1)
