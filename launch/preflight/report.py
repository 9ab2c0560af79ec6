"""What rank 0 of each site tells: the table, one JSON object, and the files for later."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from isthmus.errors import EXIT_OK, EXIT_UNFIT
from isthmus.files import write_atomically, write_json
from isthmus.launch.preflight.between import Meeting
from isthmus.launch.preflight.cluster_file import cluster_yaml
from isthmus.launch.preflight.config import PreflightConfig
from isthmus.launch.preflight.findings import Finding, Sites, Status, several_nodes, worst
from isthmus.launch.preflight.judge_links import MeasuredLink, judge_links, measured_links
from isthmus.launch.preflight.judge_ranks import judge_ranks
from isthmus.launch.preflight.judge_sites import judge_sites
from isthmus.parallelism.sites.meeting import describe_differences
from isthmus.train.config import Config
from isthmus.train.validate import Plan

_WIDTH_OF_FILES = 160
_STYLES = {Status.passed: "green", Status.warn: "yellow", Status.fail: "bold red"}


class Reporter:
    """Rank 0's voice.

    Args:
        as_json: one JSON object on standard output, and everything else on standard error.
    """

    def __init__(self, config: Config, keys: PreflightConfig, *, as_json: bool) -> None:
        self._config, self._keys, self._json = config, keys, as_json
        self._console = Console(stderr=as_json)
        if not self._console.is_terminal:
            self._console = Console(stderr=as_json, width=_WIDTH_OF_FILES)

    def tell(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def report(self, sites: Sites, meeting: Meeting | None, plan: Plan, *, seconds: float) -> int:
        """Judge, show the table, save the files; return the exit code."""
        names = list(self._config.sites.names) if meeting is not None else list(sites)
        sites = {name: sites[name] for name in names if name in sites}
        links = measured_links(sites)
        findings = _findings(self._config, self._keys, sites, links, meeting, plan, names)
        status = worst(findings)
        self._console.print(findings_table(findings))
        exclude = _to_exclude(sites, findings)
        result: dict[str, Any] = {
            "status": status.value,
            "seconds": seconds,
            "findings": [_plain(finding) for finding in findings],
            "exclude": exclude,
            "links": [link.to_json() for link in links],
            "sites": sites,
        }
        result["files"] = self._save(result, sites, links, plan.folder)
        failed = sum(finding.status is Status.fail for finding in findings)
        warned = sum(finding.status is Status.warn for finding in findings)
        self.tell(f"{status.value}: {failed} failed, {warned} to look at, {len(findings)} lines in {seconds:.0f} s")
        if exclude:
            self.tell(f"without what failed: launch.exclude=[{','.join(exclude)}]")
        if self._json:
            print(json.dumps(result), flush=True)
        return EXIT_UNFIT if status is Status.fail else EXIT_OK

    def _save(self, result: Mapping[str, Any], sites: Sites, links: list[MeasuredLink], folder: Path) -> dict[str, str]:
        """Write what was measured; a folder that cannot be written has its line in the table already."""
        cluster = Path(self._keys.out or folder / "cluster.yaml").expanduser()
        saved = {}
        try:
            write_json(folder / "preflight.json", result)
            saved["report"] = str(folder / "preflight.json")
            write_atomically(cluster, cluster_yaml(sites, links).encode())
            saved["cluster"] = str(cluster)
            self.tell(f"everything is in {saved['report']}; plan with it: isthmus plan cluster={cluster}")
        except OSError as error:
            self.tell(f"not saved: {error}")
        return saved


def findings_table(findings: list[Finding]) -> Table:
    """Return the table; what failed comes last, where the eye is."""
    table = Table("", "check", "where", "measured", "what to do")
    for status in Status:
        for finding in findings:
            if finding.status is status:
                verdict = Text(status.value, style=_STYLES[status])
                # No markup: an address in brackets would be taken for a style.
                table.add_row(verdict, *map(Text, (finding.check, finding.where, finding.measured, finding.fix)))
    return table


def _findings(
    config: Config,
    keys: PreflightConfig,
    sites: Sites,
    links: list[MeasuredLink],
    meeting: Meeting | None,
    plan: Plan,
    names: list[str],
) -> list[Finding]:
    keep, deadline = config.checkpoint.keep, config.checkpoint.deadline_seconds
    found = judge_ranks(sites, keys, plan.topology.world_size)
    found += judge_sites(sites, keys, keep=keep, deadline_seconds=deadline)
    if meeting is None:
        return found
    present = meeting.present
    for name in names:
        if name in present and name != config.sites.name:
            ours = present.get(str(config.sites.name), {}).get("config", {})
            if differing := describe_differences(ours, present[name]["config"]):
                where = f"{config.sites.name} - {name}"
                found.append(Finding(Status.fail, "configuration", where, differing, "give all sites the same keys"))
    if meeting.failure is not None and meeting.board is not None:
        found.append(Finding(Status.fail, "meeting", str(config.sites.name), meeting.failure, "start all sites again"))
    return found + judge_links(sites, links, keys, names=names, streams=config.lane.streams)


def _to_exclude(sites: Sites, findings: list[Finding]) -> list[str]:
    """Return the machines that failed, of sites that have others."""
    many = {look["node"] for site in sites.values() if several_nodes(site) for look in site["ranks"].values()}
    failed = [finding.node for finding in findings if finding.status is Status.fail and finding.node in many]
    return [node for node in dict.fromkeys(failed) if node is not None]


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "status": finding.status.value,
        "check": finding.check,
        "where": finding.where,
        "measured": finding.measured,
        "fix": finding.fix,
        "node": finding.node,
    }
