"""One rank of a preflight, from its own machine outwards: itself, its site, the other sites; rank 0 judges and tells."""

import base64
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from isthmus.config import compose, load_resolved
from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.preflight.between import Meeting, look_across
from isthmus.launch.preflight.board import Board, site_store
from isthmus.launch.preflight.config import PreflightRunConfig, validate_preflight
from isthmus.launch.preflight.observe import Clock, Rank, observe
from isthmus.processes import die_with_launcher
from isthmus.train.command import parse
from isthmus.train.config import site_name
from isthmus.train.validate import Plan, plan_run, use_device

_START_SECONDS = 10.0  # ranks wait so long for each other, so that they load the machine together as in training
_DECISION_SECONDS = 600.0  # a tokenizer may have to be trained first
_INSIDE_SECONDS = 20.0


def main(argv: Sequence[str]) -> int:
    """Look, tell the site, and on rank 0 report; return the exit code."""
    die_with_launcher()
    rank = Rank.from_environment()
    try:
        command = parse(argv)
        if command.config:
            config = load_resolved(PreflightRunConfig, command.config)
        else:
            config = compose(PreflightRunConfig, "preflight", command.overrides)
        validate_preflight(config.preflight)
    except UserError as error:
        if rank.rank == 0:
            print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    return preflight(config, rank, as_json=command.json)


def preflight(config: PreflightRunConfig, rank: Rank, *, as_json: bool = False, clock: Clock = time.time) -> int:
    """Run one rank's part.

    Args:
        clock: seconds since 1970, as this machine has it.
    """
    from isthmus.launch.preflight.report import Reporter

    began = time.monotonic()
    reporter = Reporter(config, as_json=as_json) if rank.rank == 0 else None
    tell: Callable[[str], None] = reporter.tell if reporter else lambda line: None
    store = site_store(rank.rank, rank.size, config.preflight.wait_seconds)
    board = Board(store, [str(number) for number in range(rank.size)], str(rank.rank))
    board.post("start", True)
    try:
        plan = plan_run(config, rank.size, rank.local_size)
    except UserError as error:
        # Mostly all ranks meet the same mistake; one that meets it alone is a finding.
        board.post("look", {"rank": rank.rank, "node": rank.node, "refused": str(error)})
        if reporter is None:
            return EXIT_OK
        print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    with ThreadPoolExecutor(1) as beside:
        meeting = Meeting(config, rank) if plan.sites > 1 else None
        opened = beside.submit(meeting.open) if meeting else None
        board.collect("start", _START_SECONDS)
        decision = _look_around(config, plan, rank, board, tell)
        inside = _look_inside(config, rank, board, decision, clock)
        abroad: dict[str, Any] = {}
        if meeting is not None and opened is not None:
            opened.result()
            abroad = _look_abroad(meeting, config, rank, clock, tell)
    board.post("seen", {"inside": inside, "abroad": abroad})
    code = EXIT_OK
    if reporter is not None:
        answered = [str(number) for number in decision["here"]]
        seen = board.collect("seen", config.preflight.wait_seconds, answered)
        looks = board.collect("look", 0.0)
        ranks = {number: looks[number] | seen.get(number, {"inside": {"error": "it stopped answering"}}) for number in looks}
        site = {"name": site_name(config), "size": rank.size, "node": rank.node, "ranks": ranks}
        sites = _exchange(meeting, site, config.preflight.wait_seconds) if meeting else {site["name"]: site}
        code = reporter.report(sites, meeting, plan, seconds=time.monotonic() - began)
    if meeting is not None:
        meeting.leave()
    return code


def _look_around(
    config: PreflightRunConfig, plan: Plan, rank: Rank, board: Board, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Post what this rank sees alone; return rank 0's word on who is here."""
    use_device(config.train.device)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        # Some launchers show each rank its own GPU only.
        torch.cuda.set_device(0 if torch.cuda.device_count() == 1 else rank.local_rank)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    keys = config.preflight
    board.post(
        "look",
        observe(
            config,
            plan,
            rank,
            device=device,
            matmul_seconds=keys.matmul_seconds,
            disk_bytes=keys.disk_mb * 10**6,
        ),
    )
    if rank.rank == 0:
        tell(f"{site_name(config)}: {rank.size} ranks have looked at their machines")
        looks = board.collect("look", keys.wait_seconds)
        here = [int(number) for number, look in looks.items() if "refused" not in look]
        nodes = {number: look["node"] for number, look in looks.items()}
        board.announce("here", {"here": here, "device": device, "nodes": nodes})
    decision = board.hear("here", _DECISION_SECONDS)
    return decision or {"here": [rank.rank], "device": device, "nodes": {}}


def _look_inside(
    config: PreflightRunConfig, rank: Rank, board: Board, decision: dict[str, Any], clock: Clock
) -> dict[str, Any]:
    """Check the site's collectives, unless a rank that everybody would wait for is missing."""
    from isthmus.launch.preflight.inside import collectives
    from isthmus.launch.preflight.observe import tried

    if rank.size == 1 or len(decision["here"]) < rank.size:
        return {}
    nodes = [decision["nodes"][str(number)] for number in range(rank.size)]
    order = list(dict.fromkeys(nodes))
    units = [order.index(node) for node in nodes] if len(order) > 1 else list(range(rank.size))
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else NCCL's watchdog ends the process, and its report
    return tried(
        lambda: collectives(
            board.store,
            rank.rank,
            rank.size,
            units,
            device=decision["device"],
            clock=clock,
            seconds=_INSIDE_SECONDS,
        )
    )


def _look_abroad(
    meeting: Meeting, config: PreflightRunConfig, rank: Rank, clock: Clock, tell: Callable[[str], None]
) -> dict[str, Any]:
    if meeting.board is None:
        return {"store": meeting.failure}
    try:
        meeting.attend()
        return {"links": look_across(meeting, config, rank, clock, tell)}
    except Exception as error:  # the store has gone: the other site ended, or the link broke
        return {"store": f"{config.sites.store}: {type(error).__name__}: {error}".splitlines()[0]}


def _exchange(meeting: Meeting, site: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Tell the other sites what was seen here, and learn what was seen there."""
    sites = {site["name"]: site}
    if meeting.board is None or not meeting.present:
        return sites
    try:
        meeting.board.post("report", base64.b64encode(zlib.compress(json.dumps(site).encode())).decode())
        for name, packed in meeting.board.collect("report", seconds, list(meeting.present)).items():
            sites[name] = json.loads(zlib.decompress(base64.b64decode(packed)))
    except Exception as error:
        meeting.failure = f"the meeting broke off: {type(error).__name__}"
    return sites
