"""`isthmus launch preflight`: what would stop or slow this run, found before it starts."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from isthmus.config import compose, to_yaml
from isthmus.errors import EXIT_OK, UserError
from isthmus.files import write_atomically
from isthmus.launch.node import place_of
from isthmus.launch.preflight.config import (
    PreflightRunConfig,
    sites_to_start,
    this_site,
    validate_preflight,
)
from isthmus.launch.preflight.everywhere import preflight_everywhere
from isthmus.launch.preflight.node import run_node
from isthmus.launch.sites import plan_site
from isthmus.train.command import parse, print_help
from isthmus.train.validate import plan_run

_USAGE = """\
isthmus launch preflight [OPTION] [launch.processes=N] [GROUP=CHOICE] [KEY=VALUE] ...

Look for what would stop or slow a run, on every rank and every link, before it starts. Give it the words of the run:
of a sites file it is started in all sites (elsewhere by ssh with launch.ssh=true, through Slurm with launch=slurm). Or
start it in each site as the run is started there, with sites.name=THIS, and each prints the whole table; on several
machines of a site: torchrun [...] -m isthmus.launch.preflight [overrides]

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
        if sites := sites_to_start(config):
            for site in sites:
                plan_site(site, config.launch)
            return preflight_everywhere(config, sites, as_json=command.json)
        site = this_site(config)
        if site.spec.nodes > 1:
            started = f"torchrun --nnodes={site.spec.nodes} --nproc-per-node={site.ranks_per_node} [...]"
            fix = f"start it on each: {started} -m isthmus.launch.preflight [overrides]; or give launch.ssh=true"
            raise UserError(f"has {site.spec.nodes} nodes", where=site.name, fix=fix)
        plan_run(site.config, world_size=site.ranks_per_node)
        # Not in the run folder: that it cannot be written may be what is to be found.
        with tempfile.TemporaryDirectory(prefix="isthmus-preflight-") as folder:
            resolved = Path(folder, "config.yaml")
            write_atomically(resolved, to_yaml(config).encode())
            options, alone = ["--json"] if command.json else [], place_of(os.environ, 1, 0, "preflight")
            return run_node(site, resolved, options, place=alone, wait_seconds=config.preflight.wait_seconds)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
