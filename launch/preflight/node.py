"""The ranks of one node in a preflight: `python -m isthmus.launch.preflight.node --config=FILE [...]`.

`isthmus launch preflight` runs them in its own process where the site is one node of this machine, and starts this
module where it is more or elsewhere. The nodes of a site meet as those of a run do, by a file in the run folder.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from isthmus.config import load_resolved
from isthmus.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNFIT, UserError
from isthmus.launch.agent import Ended, Meeting, Ranks
from isthmus.launch.crew import Follower, Leader, Order, Timing, own_name_and_address
from isthmus.launch.node import Place, place_of
from isthmus.launch.preflight.config import PreflightRunConfig, this_site
from isthmus.launch.scripts import environment_of
from isthmus.launch.sites import LaunchSite
from isthmus.launch.supervise import follow, watching
from isthmus.train.validate import prepare_folder


def run_node(site: LaunchSite, config: Path, options: Sequence[str], *, place: Place, wait_seconds: float) -> int:
    """Run this node's ranks to their end; return the site's exit code on its first node.

    Args:
        config: the file that ranks read.
        wait_seconds: for the other nodes to come.

    Raises:
        UserError: the nodes do not meet.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.update(environment_of(site.spec))  # what the run's ranks would get
    arguments, module = ["--config", str(config), *options], "isthmus.launch.preflight"
    ranks = Ranks(site.ranks_per_node, arguments, module=module, affinity=site.spec.affinity)
    try:
        if place.nodes == 1:
            return _code(site, ranks.run(Meeting("preflight")))
        folder, timing = Path(site.files, "preflight"), Timing(join_seconds=wait_seconds)
        prepare_folder(folder)
        if place.node:
            return follow(ranks, Follower(folder, place.launch_id, node=place.node, name=place.name, timing=timing))
        return _lead(site, ranks, folder, place, timing)
    except (KeyboardInterrupt, SignalException):
        return EXIT_INTERRUPTED


def _lead(site: LaunchSite, ranks: Ranks, folder: Path, place: Place, timing: Timing) -> int:
    leader = Leader(
        folder,
        place.launch_id,
        address=own_name_and_address(site.spec.interface)[1],
        port=site.spec.meeting_port or 0,
        name=place.name,
        expected=place.nodes,
        needed=place.nodes,
        timing=timing,
    )
    code = EXIT_UNFIT
    try:
        leader.wait()
        order = Order(0, tuple(range(place.nodes)))
        with watching(ranks, lambda: leader.trouble(order), timing.grace_seconds):
            ended = ranks.run(leader.run(order))
        ends = leader.collect(order, ended, lambda: False)
        failed = [end for end in ends.values() if end.code and not end.killed]
        code = _code(site, failed[0]) if failed else EXIT_OK
        return code
    finally:
        leader.end(code)


def _code(site: LaunchSite, ended: Ended) -> int:
    if ended.code >= 0:
        return ended.code
    name = signal.Signals(-ended.code).name
    print(f"isthmus: rank {ended.rank} of {site.name} ended by {name}", file=sys.stderr)
    return EXIT_UNFIT


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--launch-id", required=True)
    parser.add_argument("--nodes", type=int, help="of the site (default: as srun says)")
    parser.add_argument("--node", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    try:
        config = load_resolved(PreflightRunConfig, given.config)
        place = place_of(os.environ, given.nodes, given.node, given.launch_id)
        options = ["--json"] if given.json else []
        wait_seconds = config.preflight.wait_seconds
        return run_node(this_site(config), given.config, options, place=place, wait_seconds=wait_seconds)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
