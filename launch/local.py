"""launch=local: the ranks of one site in the foreground, or several sites beside each other."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from isthmus.errors import EXIT_OK, EXIT_REQUEUE, EXIT_SITE_LOST
from isthmus.files import write_atomically
from isthmus.launch.agent import Ranks
from isthmus.launch.scripts import agent_script
from isthmus.launch.sites import LaunchSite
from isthmus.launch.supervise import Supervisor
from isthmus.processes import die_with_parent
from isthmus.train.validate import prepare_folder

_POLL_SECONDS = 0.2
_NOTICE_SECONDS = 2.0  # for sites that end together
_PATIENCE_SECONDS = 30.0


def run_here(site: LaunchSite, folder: Path, options: list[str]) -> int:
    """Supervise the ranks of one site in this process; return the run's exit code."""
    prepare_folder(folder)
    ranks = Ranks(site.ranks_per_node, ["--config", str(folder / "config.yaml"), *options])
    return Supervisor(site.config, folder, ranks).run()


def run_sites_here(sites: Sequence[LaunchSite], launch_id: str) -> int:
    """Run the script of each site and show what they say, with the site's name; return the worst exit code."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    readers = []
    try:
        with _listening(processes):
            for site in sites:
                prepare_folder(Path(site.files))
                script = Path(site.files, "node-0.sh")
                write_atomically(script, agent_script(site, node=0, launch_id=launch_id).encode())
                processes[site.name] = subprocess.Popen(
                    ["bash", str(script)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches this process, which passes it on
                    preexec_fn=die_with_parent,
                )
                readers.append(threading.Thread(target=_show, args=(site.name, processes[site.name]), daemon=True))
                readers[-1].start()
            _wait(sites, processes)
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        for reader in readers:
            reader.join()
    codes = [
        process.returncode if process.returncode >= 0 else 128 - process.returncode for process in processes.values()
    ]
    failed = [code for code in codes if code != EXIT_OK]
    causes = [code for code in failed if code not in (EXIT_SITE_LOST, EXIT_REQUEUE)]  # or else they were asked to end
    return (causes or failed or [EXIT_OK])[0]


def _wait(sites: Sequence[LaunchSite], processes: "dict[str, subprocess.Popen[bytes]]") -> None:
    """Wait for all. One that has failed will not come back: the others are asked, and then made, to end."""
    kills_at = float("inf")
    while running := [process for process in processes.values() if process.poll() is None]:
        failed = any(process.poll() not in (None, EXIT_OK) for process in processes.values())
        if failed and kills_at == float("inf"):
            # A step that waits for the lost site ends when its lane gives up.
            kills_at = time.monotonic() + max(site.config.lane.deadline_seconds for site in sites) + _PATIENCE_SECONDS
            time.sleep(_NOTICE_SECONDS)
            _signal(running, signal.SIGTERM)
        if time.monotonic() > kills_at:
            _signal(running, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _show(name: str, process: "subprocess.Popen[bytes]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stderr.buffer.write(f"{name}: ".encode() + line)
        sys.stderr.buffer.flush()


@contextmanager
def _listening(processes: "dict[str, subprocess.Popen[bytes]]") -> Iterator[None]:
    """Within: requests to stop are passed on to all sites."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        _signal(list(processes.values()), number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signal(processes: "Sequence[subprocess.Popen[bytes]]", number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(number)
