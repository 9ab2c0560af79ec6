"""Sites files: what they make of a run, and what they are refused for, in one line that names the key."""

from pathlib import Path

import pytest

from isthmus.config import compose, keys_of
from isthmus.errors import UserError
from isthmus.launch.record import SiteRecord
from isthmus.launch.shell import Answer, Shell
from isthmus.launch.sites import LaunchSite, launch_sites, train_config
from isthmus.launch.sites_file import LaunchRunConfig, SiteSpec
from isthmus.launch.states import active, states
from isthmus.train.config import Config, run_name

RUN = ["train.steps=10", "sync=exact"]
TWO = "store: 127.0.0.1:29400\nat:\n  one: {dir: /a}\n  two: {dir: /b, ranks_per_node: 3}\n"


def sites_of(folder: Path, table: str, *words: str) -> list[LaunchSite]:
    path = folder / "sites.yaml"
    path.write_text(table)
    return launch_sites(compose(LaunchRunConfig, "launch", [*RUN, f"sites={path}", *words]))


def test_each_site_gets_a_configuration_of_its_own(tmp_path: Path) -> None:
    table = TWO.replace("dir: /a", "dir: /a, port_range: 100-110, overrides: {data: {cache_dir: /c}, train.threads: 1}")
    one, two = sites_of(tmp_path, table, "launch.processes=2", "run.name=r")
    assert (one.world_size, two.world_size) == (2, 3)
    assert (one.folder, two.folder) == ("/a/runs/r/one", "/b/runs/r/two")
    assert (one.config.data.cache_dir, one.config.train.threads, one.config.lane.port_range) == ("/c", 1, "100-110")
    assert (two.config.train.threads, two.config.lane.port_range) == (None, None)
    assert two.config.data.cache_dir == Config().data.cache_dir
    assert (two.config.sites.name, two.config.sites.names) == ("two", ["one", "two"])
    assert run_name(one.config) == run_name(two.config)


def test_sites_that_differ_in_nothing_but_their_names(tmp_path: Path) -> None:
    one, two = sites_of(tmp_path, TWO)
    assert (one.config.sites.name, two.config.sites.name) == ("one", "two")


def test_without_a_sites_file_it_is_the_run_that_train_would_make() -> None:
    whole = compose(LaunchRunConfig, "launch", ["train.steps=10", "launch.processes=2"])
    (site,) = launch_sites(whole)
    assert (site.name, site.world_size, site.elsewhere) == ("main", 2, False)
    assert site.config == train_config(whole)


def test_spares_and_excluded_hosts(tmp_path: Path) -> None:
    table = "store: h:1\nat:\n  one: {hosts: [a, b, c, d], nodes: 2, spares: 1, dir: /x}\n  two: {dir: /y}\n"
    one, _ = sites_of(tmp_path, table, "launch=torchrun", "launch.exclude=[b]")
    assert one.hosts([]) == ["a", "b", "c"]
    assert one.hosts(["b"]) == ["a", "c", "d"]


REFUSED = {
    "a key that must be equal": (
        TWO.replace("dir: /a", "dir: /a, overrides: {optim.learning_rate: 1}"),
        [],
        "sites.at.one.overrides.optim.learning_rate: has to be the same in all sites",
    ),
    "an unknown override": (
        TWO.replace("dir: /a", "dir: /a, overrides: {log.x: 1}"),
        [],
        "sites.at.one.overrides.log.x",
    ),
    "an override of a wrong type": (
        TWO.replace("dir: /a", "dir: /a, overrides: {train.threads: many}"),
        [],
        "sites.at.one.overrides.train.threads",
    ),
    "an unknown key": (TWO.replace("dir: /a", "dirs: /a"), [], "dirs"),
    "names that differ": (TWO, ["sites.names=[one,three]"], "sites.names: differ from those of sites.at: three, two"),
    "ssh without a folder": (TWO.replace("dir: /a", "ssh: host"), ["launch=slurm"], "sites.at.one.dir: is not given"),
    "a relative folder": (TWO.replace("/a", "a"), [], "sites.at.one.dir: is 'a'"),
    "another machine": (TWO.replace("dir: /a", "dir: /a, ssh: h"), [], "launch=local runs on this machine"),
    "several nodes here": (TWO.replace("dir: /a", "dir: /a, nodes: 2"), [], "sites.at.one.nodes: launch=local"),
    "too few hosts": (
        TWO.replace("dir: /a", "dir: /a, hosts: [h, i], nodes: 2"),
        ["launch=torchrun", "launch.exclude=[h]"],
        "sites.at.one.hosts: 1 machines without h for 2 nodes",
    ),
    "hosts under Slurm": (TWO.replace("dir: /a", "dir: /a, hosts: [h]"), ["launch=slurm"], "Slurm chooses the nodes"),
    "an option for ssh as a host": (TWO.replace("dir: /a", "dir: /a, ssh: -oX"), ["launch=slurm"], "'-oX' is no host"),
    "no time": (TWO.replace("dir: /a", "dir: /a, slurm: {time: soon}"), ["launch=slurm"], "slurm.time: is 'soon'"),
    "mounts of nothing": (
        TWO.replace("dir: /a", "dir: /a, slurm: {container_mounts: '/x:/x'}"),
        ["launch=slurm"],
        "slurm.container_mounts: would do nothing",
    ),
    "an array of different jobs": (TWO, ["launch=slurm", "launch.array=true"], "one and two differ in dir"),
    "an array of different ranks": (
        TWO.replace("/b", "/a"),
        ["launch=slurm", "launch.array=true"],
        "one and two differ in ranks_per_node",
    ),
    "an array without Slurm": (TWO, ["launch.array=true"], "launch.array: is Slurm's"),
    "ssh here": (TWO, ["launch.ssh=true"], "launch.ssh: would do nothing with launch=local"),
    "exclusion here": (TWO, ["launch.exclude=[n1]"], "launch.exclude: would do nothing with launch=local"),
    "no ranks": (TWO, ["launch.processes=0"], "launch.processes: is 0"),
    "a folder of ours": (TWO.replace("one:", "launch:"), [], "sites.at.launch: names a folder of every run"),
    "a variable": (TWO.replace("dir: /a", "dir: /a, env: {'A B': '1'}"), [], "'A B' names no variable"),
}


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Answer(0, "PENDING|Resources\n", ""), "PENDING"),
        (Answer(0, "", ""), "COMPLETED"),
        (Answer(1, "", "slurm_load_jobs error: Invalid job id specified\n"), "COMPLETED"),
        (Answer(1, "", "slurm_load_jobs error: Unable to contact slurm controller\n"), None),
    ],
)
def test_a_job_of_which_slurm_says_nothing_has_not_ended(
    answer: Answer, state: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shell, "run", lambda *words: answer)
    (found,) = states([SiteRecord("one", "slurm", "/nowhere", job="7")])
    assert found.get("job_state") == state
    assert ("unreachable" in found) == (state is None)
    assert not active({"job_state": "PREEMPTED"})


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    table, words, expected = REFUSED[case]
    with pytest.raises(UserError) as caught:
        sites_of(tmp_path, table, *words)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_key_of_a_site_has_a_help_text() -> None:
    assert [name for name, _, text in keys_of(SiteSpec) if not text.strip()] == []
    assert [name for name, _, text in keys_of(LaunchRunConfig) if not text.strip()] == []
