"""One rank of a preflight, from its machine outwards: itself, its site, the other sites; rank 0 judges and tells."""

import base64
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from isthmus.config import compose, load_resolved
from isthmus.errors import EXIT_OK, UserError
from isthmus.launch.preflight.between import Meeting, look_across
from isthmus.launch.preflight.board import Board, site_store
from isthmus.launch.preflight.config import PreflightConfig, PreflightRunConfig, this_site, validate_preflight
from isthmus.launch.preflight.observe import Clock, Rank, checkpoint_folder, marked, observe, tried
from isthmus.processes import die_with_launcher
from isthmus.train.command import parse
from isthmus.train.config import Config, site_name
from isthmus.train.validate import plan_run, use_device

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
        site = this_site(config)
    except UserError as error:
        if rank.rank == 0:
            print(f"isthmus: {error}", file=sys.stderr)
        return error.exit_code
    return preflight(site.config, config.preflight, rank, as_json=command.json)


def preflight(
    config: Config, keys: PreflightConfig, rank: Rank, *, as_json: bool = False, clock: Clock = time.time
) -> int:
    """Run one rank's part.

    Args:
        clock: seconds since 1970, as this machine has it.
    """
    from isthmus.launch.preflight.report import Reporter

    began = time.monotonic()
    reporter = Reporter(config, keys, as_json=as_json) if rank.rank == 0 else None
    tell: Callable[[str], None] = reporter.tell if reporter else lambda line: None
    store = site_store(rank.rank, rank.size, keys.wait_seconds)
    board = Board(store, [str(number) for number in range(rank.size)], str(rank.rank))
    board.post("start", True)
    try:
        plan = plan_run(config, rank.size, rank.local_size)
    except UserError as error:
        # Mostly all ranks meet the same mistake; one that meets it alone is a finding.
        board.post("look", {"rank": rank.rank, "node": rank.node, "refused": str(error)})
        if reporter is None:
            return _verdict(board)
        print(f"isthmus: {error}", file=sys.stderr)
        board.announce("verdict", error.exit_code)
        return error.exit_code
    with ThreadPoolExecutor(1) as beside, ExitStack() as stack:
        meeting = Meeting(config, rank, keys.wait_seconds) if plan.sites > 1 else None
        opened = beside.submit(meeting.open) if meeting else None
        board.collect("start", _START_SECONDS)
        device = _use_device(config, rank)
        tell(f"{site_name(config)}: {rank.size} rank(s) look at their machines")
        seconds, disk_bytes = keys.matmul_seconds, keys.disk_mb * 10**6
        board.post("look", observe(config, plan, rank, device=device, matmul_seconds=seconds, disk_bytes=disk_bytes))
        if reporter is not None:
            marker = stack.enter_context(marked(plan.folder))
            board.announce("here", _who_is_here(board, keys.wait_seconds) | {"marker": marker})
        here = board.hear("here", _DECISION_SECONDS) or {"nodes": {}, "marker": None}
        seen: dict[str, Any] = {"inside": _look_inside(rank, board, here, device, clock)}
        if here["marker"] and rank.local_rank == 0:
            seen["shared"] = (checkpoint_folder(plan.folder) / here["marker"]).exists()
        if meeting is not None and opened is not None:
            opened.result()
            seen["abroad"] = _look_abroad(meeting, config, keys, rank, clock, tell)
        board.post("seen", seen)
        if reporter is None:
            code = _verdict(board)
        else:
            ranks = _all_seen(board, here, keys.wait_seconds)
            site: dict[str, Any] = {"name": site_name(config), "size": rank.size, "ranks": ranks}
            sites = _exchange(meeting, site, 2 * keys.wait_seconds) if meeting else {str(site["name"]): site}
            code = reporter.report(sites, meeting, plan, seconds=time.monotonic() - began)
            board.announce("verdict", code)
        if meeting is not None:
            meeting.leave()
    return code


def _verdict(board: Board) -> int:
    """Return rank 0's exit code: where some ranks succeed and others fail, their agents wait minutes for each other."""
    try:
        code = board.hear("verdict", _DECISION_SECONDS)
    except Exception:  # the store has gone, with rank 0
        code = None
    return EXIT_OK if code is None else int(code)


def _use_device(config: Config, rank: Rank) -> str:
    use_device(config.train.device)
    import torch

    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    if not torch.cuda.is_available():
        return "cpu"
    # Some launchers show each rank its own GPU only.
    torch.cuda.set_device(0 if torch.cuda.device_count() == 1 else rank.local_rank)
    return "cuda"


def _who_is_here(board: Board, seconds: float) -> dict[str, Any]:
    """Return the node of every rank that looked; on rank 0, which tells the others."""
    looks = board.collect("look", seconds)
    return {"nodes": {number: look["node"] for number, look in looks.items() if "refused" not in look}}


def _all_seen(board: Board, here: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Return all that the ranks of this site have seen, also of those that have fallen silent since."""
    looks = board.collect("look", 0.0)
    seen = board.collect("seen", seconds, list(here["nodes"]))
    silent = {"inside": {"error": "it stopped answering"}}
    return {number: look | ({} if "refused" in look else seen.get(number, silent)) for number, look in looks.items()}


def _look_inside(rank: Rank, board: Board, here: dict[str, Any], device: str, clock: Clock) -> dict[str, Any]:
    """Check the site's collectives, unless a rank that everybody would wait for is missing."""
    from isthmus.launch.preflight.inside import collectives

    if rank.size == 1 or len(here["nodes"]) < rank.size:
        return {}
    nodes = [here["nodes"][str(number)] for number in range(rank.size)]
    order = list(dict.fromkeys(nodes))
    units = [order.index(node) for node in nodes] if len(order) > 1 else list(range(rank.size))
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # else NCCL's watchdog ends the process, and its report
    return tried(
        lambda: collectives(
            board.store, rank.rank, rank.size, units, device=device, clock=clock, seconds=_INSIDE_SECONDS
        )
    )


def _look_abroad(
    meeting: Meeting, config: Config, keys: PreflightConfig, rank: Rank, clock: Clock, tell: Callable[[str], None]
) -> dict[str, Any]:
    if meeting.board is None:
        return {"store": meeting.failure}
    try:
        meeting.attend()
        return {"links": look_across(meeting, config, keys, rank, clock, tell)}
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
