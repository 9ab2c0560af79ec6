"""Of a sites file, a preflight takes the site that it is started in."""

from pathlib import Path

import pytest

from isthmus.config import compose
from isthmus.launch.preflight import command
from isthmus.launch.preflight.config import PreflightRunConfig, this_site

SITES = "at:\n  oregon: {hosts: [a], dir: /work, ranks_per_node: 2}\n  iowa: {hosts: [b, c, d], dir: /work, nodes: 3}\n"


def test_a_preflight_says_which_site_it_is_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prod.yaml").write_text(SITES)
    given = [f"sites={tmp_path}/prod.yaml", "sites.store=a:29400", "sync=local", "launch=torchrun"]
    site = this_site(compose(PreflightRunConfig, "preflight", [*given, "sites.name=oregon"]))
    assert (site.name, site.ranks_per_node, site.config.sites.names) == ("oregon", 2, ["oregon", "iowa"])
    for words, told in (
        (
            [],
            "sites.name: is not given: a preflight is started in each site; say which one this is: oregon, iowa",
        ),
        (["sites.name=ohio"], "sites.name: names no site of the sites file"),
        (["sites.name=iowa"], "iowa: has 3 nodes"),
        (["sites.name=iowa", "launch.exclude=[c]"], "without c"),
    ):
        assert command.main([*given, *words]) == 2
        assert told in capsys.readouterr().err
