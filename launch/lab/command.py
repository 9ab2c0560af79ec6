"""`isthmus lab`: train several sites on this machine over shaped links, and say what the links cost."""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from isthmus.config import compose, to_yaml
from isthmus.errors import EXIT_INTERRUPTED, EXIT_OK, UserError
from isthmus.launch.lab.config import LabConfig, LabRunConfig, LabShape
from isthmus.launch.lab.links import Links, Shape, read_links
from isthmus.launch.lab.network import LoopbackNetwork, ShapedNetwork, SiteNetwork
from isthmus.launch.lab.results import results_table, site_result, total_of
from isthmus.launch.lab.sites import Site, free_store_port, run_sites, site_config, worst_exit_code
from isthmus.launch.lab.watch import Board, say
from isthmus.train.command import parse, print_help
from isthmus.train.config import Config, run_name
from isthmus.train.validate import Plan, load_corpus, plan_run

_WIDTH_OF_FILES = 120
_USAGE = """\
isthmus lab [OPTION] [GROUP=CHOICE] [KEY=VALUE] ...

Train several sites on this machine, joined by links of any bandwidth, delay, jitter and loss:
isthmus lab experiment=smoke sync=local lab.sites=2 lab.bandwidth_mbps=20 lab.rtt_ms=50

Options:
  --print-config   print the composed configuration and end
  --json           print one JSON object on standard output at the end, everything else on standard error
  --help           print this

Groups (a choice may be a YAML file of yours, as in data=my/mix.yaml):
"""


def main(argv: Sequence[str]) -> int:
    """Compose and validate once, then train in all sites; return the worst of their exit codes."""
    try:
        command = parse(argv)
        if command.help:
            print_help(_USAGE, LabRunConfig)
            return EXIT_OK
        if command.config:
            raise UserError("is of `isthmus train`", where="--config", fix="give overrides to `isthmus lab`")
        config = compose(LabRunConfig, "lab", command.overrides)
        if command.print_config:
            print(to_yaml(config), end="")
            return EXIT_OK
        console = Console(stderr=command.json)
        if not console.is_terminal:
            console = Console(stderr=command.json, width=_WIDTH_OF_FILES)
        with _counting_requests() as stop_requested:
            outcome, code = _lab(config, console, stop_requested)
    except UserError as error:
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    if command.json:
        print(json.dumps(outcome))
    return code


def _lab(config: LabRunConfig, console: Console, stop_requested: Callable[[], int]) -> tuple[dict[str, Any], int]:
    lab = config.lab
    _refuse_what_the_lab_sets(config)
    links = _links(lab, config.sites.names)
    if config.train.threads is None:
        config.train.threads = max(1, (os.cpu_count() or 1) // (len(links.names) * lab.ranks_per_site))
    name = run_name(site_config(config, links.names, 0, [""] * len(links.names), 1))
    shapes = list(dict.fromkeys(links.shapes.values()))
    loopback = "over loopback: bandwidth, round trip and loss are this machine's"
    described = loopback if lab.shape is LabShape.none else "; ".join(shape.describe() for shape in shapes)
    outcome = {"shape": lab.shape.name, "links": described, "sync": config.sync.kind.name}
    shaped, code = _run(config, links, name, console, stop_requested, described)
    if lab.reference and code == EXIT_OK:
        free = Links.uniform(links.names, Shape())
        reference, code = _run(config, free, f"{name}-reference", console, stop_requested, "the reference, no limits")
        shaped["reference"] = reference
        rates = [run["total"].get("tokens_per_second") for run in (shaped, reference)]
        if all(rates):
            shaped["tokens_per_second_ratio"] = rates[0] / rates[1]
            say(console, f"{rates[0] / rates[1]:.1%} of the reference's tokens/s")
        else:
            say(console, "no ratio: one of the two runs had made all its steps before")
    return {**outcome, **shaped}, code


def _run(
    config: LabRunConfig,
    links: Links,
    name: str,
    console: Console,
    stop_requested: Callable[[], int],
    described: str,
) -> tuple[dict[str, Any], int]:
    lab = config.lab
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))
    network: SiteNetwork
    if lab.shape is LabShape.none:
        network = LoopbackNetwork(len(links.names))
    else:
        network = ShapedNetwork(links, seed=config.train.seed)
    try:
        configs, plans = _site_plans(config, links.names, network, lab.ranks_per_site)
        say(
            console,
            f"{len(plans)} sites of {lab.ranks_per_site} rank(s), {config.sync.kind.name} sync, {described}: "
            f"{plans[0].steps} steps into {plans[0].folder.parent}",
        )
        board: list[Board] = []

        def show(sites: list[Site]) -> None:
            if not board:
                board.append(Board(console, network, links.names, [site.log for site in sites]).__enter__())
            board[0].show(plans[0].steps)

        try:
            sites = run_sites(
                configs,
                plans,
                lab.ranks_per_site,
                network,
                show=show,
                tell=partial(say, console),
                stop_requested=stop_requested,
            )
        finally:
            for shown in board:
                shown.__exit__()
    finally:
        network.close()
    return _conclude(sites, network, plans[0].folder.parent, console, interrupted=stop_requested() > 0)


def _site_plans(
    config: LabRunConfig, names: Sequence[str], network: SiteNetwork, ranks: int
) -> tuple[list[Config], list[Plan]]:
    port = free_store_port(network.addresses[0])
    configs = [site_config(config, names, site, network.addresses, port) for site in range(len(names))]
    plans = [plan_run(configuration, world_size=ranks) for configuration in configs]
    load_corpus(configs[0], plans[0])  # so that the sites find the tokenizer in the cache
    return configs, plans


def _conclude(
    sites: Sequence[Site], network: SiteNetwork, folder: Path, console: Console, *, interrupted: bool
) -> tuple[dict[str, Any], int]:
    counts = network.counts()
    results = [
        site_result(site.name, number, len(sites), site.log, counts, site.exit_code)
        for number, site in enumerate(sites)
    ]
    total = total_of(results)
    console.print(results_table(results, total))
    if all(site.exit_code == EXIT_OK and not site.log.trained for site in sites):
        say(console, "no step was left to make: checkpoint.resume=never trains anew, run.name=... beside it")
    for site, result in zip(sites, results, strict=True):
        if result["exit_code"] not in (EXIT_OK, EXIT_INTERRUPTED):
            say(console, f"{site.name} ended with exit code {result['exit_code']}: {site.last_words}")
    stopped = "; stopped, the same command goes on from here" if interrupted else ""
    say(console, f"everything is in {folder}{stopped}")
    code = EXIT_INTERRUPTED if interrupted else worst_exit_code(sites)
    return {"folder": str(folder), "sites": results, "total": total}, code


def _refuse_what_the_lab_sets(config: LabRunConfig) -> None:
    for section, names in (("sites", ("name", "store", "host")), ("lane", ("interface",))):
        for name in names:
            if getattr(getattr(config, section), name):
                raise UserError("is set by the lab", where=f"{section}.{name}", fix="leave it out; see lab.links")
    if config.lab.reference and config.lab.shape is LabShape.none:
        raise UserError(
            "without limits the reference would be the same run",
            where="lab.reference=true",
            fix="leave it out, or lab.shape=none",
        )


def _links(lab: LabConfig, names: Sequence[str]) -> Links:
    if lab.ranks_per_site < 1:
        raise UserError(f"is {lab.ranks_per_site}", where="lab.ranks_per_site", fix="it starts at 1")
    default = Shape(
        bandwidth_mbps=lab.bandwidth_mbps,
        rtt_ms=lab.rtt_ms,
        jitter_ms=lab.jitter_ms,
        loss=lab.loss,
        queue_ms=lab.queue_ms,
    )
    if lab.links is not None:
        links = read_links(Path(lab.links).expanduser(), default)
        if lab.sites not in (None, len(links.names)):
            raise UserError(f"is {lab.sites}", where="lab.sites", fix=f"{lab.links} names {len(links.names)}")
        if names and list(names) != list(links.names):
            raise UserError("differ from those of the links", where="sites.names", fix=f"leave them to {lab.links}")
        return links
    count = (len(names) or 2) if lab.sites is None else lab.sites
    if not 1 <= count <= 250:
        raise UserError(f"is {count}", where="lab.sites", fix="choose from 1 to 250")
    if names and len(names) != count:
        raise UserError(f"is {count}", where="lab.sites", fix=f"sites.names has {len(names)}, or leave those out")
    return Links.uniform(names or [f"site{number + 1}" for number in range(count)], default)


@contextmanager
def _counting_requests() -> Iterator[Callable[[], int]]:
    """Within: Ctrl-C and SIGTERM are counted instead of obeyed."""
    requests = 0

    def count(number: int, frame: FrameType | None) -> None:
        nonlocal requests
        requests += 1

    before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
