"""One node of a site, as a launch's scripts start it: `python -m isthmus.launch.node --config FILE --ranks N ...`.

The first node leads, the others follow. Under Slurm which node this is comes from srun.
"""

import argparse
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from isthmus.config import load_resolved
from isthmus.errors import EXIT_NODE_LOST, UserError
from isthmus.files import write_atomically, write_json
from isthmus.launch.agent import Ranks
from isthmus.launch.crew import Crew, Follower, Leader, Timing, own_name_and_address
from isthmus.launch.sites_file import Affinity
from isthmus.launch.supervise import Supervisor, follow, tell, unwanted
from isthmus.processes import die_with_parent
from isthmus.train.config import Config, run_name, site_name
from isthmus.train.validate import load_corpus, plan_run, prepare_folder


@dataclass(frozen=True)
class Place:
    """This node among those of its site."""

    node: int
    nodes: int
    name: str
    launch_id: str  # the same on all nodes, another at each start


def main(argv: Sequence[str] | None = None) -> int:
    """Lead or follow until the run has ended; return the exit code of the policy table."""
    words = _parse(sys.argv[1:] if argv is None else argv)
    under_srun = _is_under_srun(os.environ, words.nodes)
    if under_srun:
        # The parent is slurmstepd: without it nothing would end this node, and what trains here would go on unseen.
        die_with_parent()
    try:
        config = load_resolved(Config, words.config)
        folder = Path(config.run.dir).expanduser().absolute() / run_name(config) / site_name(config)
        prepare_folder(folder / "launch")
        place = place_of(os.environ, words.nodes, words.node, words.launch_id)
        if config.checkpoint.resume == "never" and _has_begun_anew(folder, place.node, words.launch_id):
            # That was for the first start of this launch.
            config.checkpoint = replace(config.checkpoint, resume="auto")
        code = _run(words, config, folder, place)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    ended = folder / "launch" / "exit"
    # srun's own exit code is that of the task that ended worst, and it ends all when one has failed. The first node
    # says how the run ended; where its step has died (with its machine, the job has), the others say so.
    leaderless = under_srun and code == EXIT_NODE_LOST and not ended.exists()
    if place.node == 0 or leaderless:
        write_atomically(ended, f"{code}\n".encode())
    return code


def place_of(environment: Mapping[str, str], nodes: int | None, node: int | None, launch_id: str) -> Place:
    """Return where this node is, as the command line says, or else srun."""
    if _is_under_srun(environment, nodes):
        job = f"{environment['SLURM_JOB_ID']}.{environment.get('SLURM_RESTART_COUNT', 0)}"
        return Place(
            node=int(environment["SLURM_PROCID"]),
            nodes=int(environment["SLURM_NTASKS"]),
            name=environment.get("SLURMD_NODENAME", socket.gethostname()),
            launch_id=f"{launch_id}-{job}",
        )
    return Place(node or 0, nodes or 1, socket.gethostname(), launch_id)


def _is_under_srun(environment: Mapping[str, str], nodes: int | None) -> bool:
    return nodes is None and "SLURM_PROCID" in environment


def _run(words: argparse.Namespace, config: Config, folder: Path, place: Place) -> int:
    ranks = Ranks(
        words.ranks,
        ["--config", str(folder / "config.yaml")],
        affinity=Affinity[words.affinity],
        patience_seconds=words.patience,
    )
    if "OMP_NUM_THREADS" not in os.environ:
        tell(f"OMP_NUM_THREADS={ranks.threads} on {place.name}: the cores, shared by {words.ranks} rank(s)")
    timing = Timing(lost_seconds=words.lost_after)
    if place.node:
        follower = Follower(folder / "launch", place.launch_id, node=place.node, name=place.name, timing=timing)
        _say_started(folder, place, words.launch_id, [])
        return follow(ranks, follower, grace_seconds=timing.grace_seconds)
    crew: Crew | None = None
    if place.nodes > 1:
        leader = Leader(
            folder / "launch",
            place.launch_id,
            address=own_name_and_address(words.interface)[1],
            port=words.meeting_port,
            name=place.name,
            expected=place.nodes,
            needed=words.taking_part,
            timing=timing,
        )
        crew = leader
    try:
        plan = plan_run(config, world_size=words.taking_part * words.ranks, local_world_size=words.ranks)
        load_corpus(config, plan)
        if crew is not None:
            leader.wait()
    except UserError as error:
        if crew is not None:
            crew.end(error.exit_code)
        raise
    _say_started(folder, place, words.launch_id, unwanted(config, folder))
    supervisor = Supervisor(
        config,
        folder,
        ranks,
        crew,
        needed=words.taking_part,
        # Within salloc there may be agents that nobody would start again.
        can_move=words.nodes is None and "SLURM_JOB_ID" in os.environ,
        grace_seconds=timing.grace_seconds,
    )
    return supervisor.run()


def _has_begun_anew(folder: Path, node: int, launch_id: str) -> bool:
    """Return whether an earlier start of this launch has set aside the checkpoints that were there before it."""
    with suppress(OSError, ValueError):
        started = json.loads((folder / "launch" / f"node-{node}.json").read_text())
        return started["launch"] == launch_id and not any(Path(path).exists() for path in started.get("unwanted", []))
    return False


def _say_started(folder: Path, place: Place, launch_id: str, unwanted: Sequence[Path]) -> None:
    """Whoever started this node waits for it; `launch stop` finds the process by it."""
    started = {
        "launch": launch_id,
        "node": place.name,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "unwanted": [str(path) for path in unwanted],
    }
    write_json(folder / "launch" / f"node-{place.node}.json", started)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m isthmus.launch.node", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration of the site")
    parser.add_argument("--ranks", type=int, required=True, help="of this node")
    parser.add_argument("--taking-part", type=int, default=1, help="nodes that train; the others stand by")
    parser.add_argument("--nodes", type=int, help="that are started (default: as srun says, else 1)")
    parser.add_argument("--node", type=int, help="this one, from 0; the first leads")
    parser.add_argument("--launch-id", default="by-hand", help="the same for all nodes, another for each launch")
    parser.add_argument("--affinity", choices=[kind.name for kind in Affinity], default="none")
    parser.add_argument("--interface", help="network interface on which the nodes meet")
    parser.add_argument("--meeting-port", type=int, default=0, help="on the first node (default: any)")
    parser.add_argument("--patience", type=float, help="seconds for ranks to save after SIGUSR2")
    parser.add_argument("--lost-after", type=float, default=60.0, help="seconds without a sign of life of a node")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
