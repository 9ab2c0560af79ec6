"""`isthmus launch preflight`: what would stop or slow this run, found before it starts."""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from isthmus.config import compose, to_yaml
from isthmus.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_UNFIT, UserError
from isthmus.files import write_atomically
from isthmus.launch.preflight.config import PreflightRunConfig, this_site, validate_preflight
from isthmus.launch.scripts import environment_of
from isthmus.launch.sites import LaunchSite
from isthmus.train.command import parse, print_help
from isthmus.train.validate import plan_run

_USAGE = """\
isthmus launch preflight [OPTION] [launch.processes=N] [GROUP=CHOICE] [KEY=VALUE] ...

Look for what would stop or slow a run, on every rank and every link, before it starts. Give it the words of the run;
of several sites, start it in each as the run is started (of a sites file, with sites.name=THIS), and each prints the
whole table. On several machines of a
site: torchrun [...] -m isthmus.launch.preflight [overrides]

Exit codes: 0 all passed or are worth a look, 90 something failed, 2 something in the input is wrong.

Options:
  --print-config   print the composed configuration and end
  --json           print one JSON object on standard output at the end, everything else on standard error
  --help           print this

Groups (a choice may be a YAML file of yours, as in data=my/mix.yaml):
"""


def main(words: Sequence[str]) -> int:
    """Compose and validate once, run all ranks of this site, and return the verdict as an exit code."""
    try:
        command = parse(words)
        if command.help:
            print_help(_USAGE, PreflightRunConfig, "preflight")
            return EXIT_OK
        if command.config:
            raise UserError("is of `isthmus train`", where="--config", fix="give overrides to the preflight")
        config = compose(PreflightRunConfig, "preflight", command.overrides)
        if command.print_config:
            print(to_yaml(config), end="")
            return EXIT_OK
        validate_preflight(config.preflight)
        site = this_site(config)
        ranks, nodes = site.ranks_per_node, site.spec.nodes
        if nodes > 1:
            started = f"torchrun --nnodes={nodes} --nproc-per-node={ranks} [...] -m isthmus.launch.preflight"
            raise UserError(f"has {nodes} nodes", where=site.name, fix=f"start it on each: {started} [overrides]")
        plan_run(site.config, world_size=ranks)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    return _run(config, site, ["--json"] if command.json else [])


def _run(config: PreflightRunConfig, site: LaunchSite, options: list[str]) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from isthmus.launch.agent import Meeting, Ranks

    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not in the run folder: that it cannot be written may be what is to be found.
    with tempfile.TemporaryDirectory(prefix="isthmus-preflight-") as folder:
        resolved = Path(folder, "config.yaml")
        write_atomically(resolved, to_yaml(config).encode())
        try:
            os.environ.update(environment_of(site.spec))  # what the run's ranks would get
            arguments, module = ["--config", str(resolved), *options], "isthmus.launch.preflight"
            ranks = Ranks(site.ranks_per_node, arguments, module=module, affinity=site.spec.affinity)
            ended = ranks.run(Meeting("preflight"))
        except (KeyboardInterrupt, SignalException):
            return EXIT_INTERRUPTED
    if ended.code < 0:
        name = signal.Signals(-ended.code).name
        print(f"isthmus: rank {ended.rank} of {site.name} ended by {name}", file=sys.stderr)
        return EXIT_UNFIT
    return ended.code
