"""The ranks of one node in a preflight: `python -m isthmus.launch.preflight.node --config=FILE [...]`.

`isthmus launch preflight` runs them in its own process where the site is one node of this machine, and starts this
module where it is more or elsewhere.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from isthmus.config import load_resolved
from isthmus.errors import EXIT_INTERRUPTED, EXIT_UNFIT, UserError
from isthmus.launch.crew import own_name_and_address
from isthmus.launch.preflight.config import PreflightRunConfig, this_site
from isthmus.launch.scripts import environment_of
from isthmus.launch.sites import LaunchSite


def run_node(
    site: LaunchSite, config: Path, options: Sequence[str], *, nodes: int = 1, node: int = 0, endpoint: str = ""
) -> int:
    """Run this node's ranks to their end and return the exit code.

    Args:
        config: the file that they read.
        endpoint: HOST:PORT of the first node, where several meet.

    Raises:
        UserError: the endpoint cannot be opened.
    """
    from torch.distributed import TCPStore
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from isthmus.launch.agent import Meeting, Ranks

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as open_until_all_have_left:
            meeting = Meeting("preflight")
            if nodes > 1:
                if node == 0:
                    host, _, port = endpoint.rpartition(":")
                    try:
                        store = TCPStore(host, int(port), is_master=True, wait_for_workers=False)
                    except (RuntimeError, OSError) as error:
                        reason = str(error).splitlines()[0]
                        raise UserError(f"nodes cannot meet at {endpoint}: {reason}", where=site.name) from None
                    open_until_all_have_left.callback(lambda: store)
                _, address = own_name_and_address(site.spec.interface)
                meeting = Meeting("preflight", nodes, endpoint, address)
            os.environ.update(environment_of(site.spec))  # what the run's ranks would get
            arguments = ["--config", str(config), *options]
            module = "isthmus.launch.preflight"
            ranks = Ranks(site.ranks_per_node, arguments, module=module, affinity=site.spec.affinity)
            ended = ranks.run(meeting)
    except (KeyboardInterrupt, SignalException):
        return EXIT_INTERRUPTED
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        print(f"isthmus: rank {ended.rank} of {site.name} ended by {name}", file=sys.stderr)
        return EXIT_UNFIT
    return ended.code


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--node", type=int, default=0)
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    try:
        site = this_site(load_resolved(PreflightRunConfig, given.config))
        options = ["--json"] if given.json else []
        return run_node(site, given.config, options, nodes=given.nodes, node=given.node, endpoint=given.endpoint)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
