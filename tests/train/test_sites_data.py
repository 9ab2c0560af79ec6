"""Two sites of unequal shares train as one process does, and refuse to begin on different data."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.ranks import free_port

STEPS = 4


def start(folder: Path, text: str, *overrides: str, site: str = "") -> "subprocess.Popen[str]":
    """Begin a run whose data lies in a folder of its own."""
    place = folder / (site or "alone")
    (place / "text").mkdir(parents=True)
    for number in range(20):
        (place / f"text/{number:02d}.txt").write_text(f"Document {number}. " + f"word{number} {text}. " * 60)
    mix = place / "mix.yaml"
    mix.write_text(f"sources:\n  pages: {{path: {place}/text}}\n")
    command = [
        sys.executable, "-m", "isthmus.train", "model=nano", f"data={mix}", f"data.cache_dir={folder}/cache",
        f"train.steps={STEPS}", "train.global_batch=8", "train.sequence_length=64", "train.threads=1", "run.name=r",
        f"run.dir={place}/runs", "data.log_samples=true", *overrides,
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def together(folder: Path, texts: dict[str, str], *overrides: str) -> list[Any]:
    names = f"sites.names=[{','.join(texts)}]"
    common = [names, f"sites.store=127.0.0.1:{free_port()}", "sites.wait_seconds=120", "sync=exact", *overrides]
    running = [start(folder, text, f"sites.name={name}", *common, site=name) for name, text in texts.items()]
    return [(process.communicate(timeout=300), process.returncode) for process in running]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


@pytest.mark.slow
def test_unequal_shares_are_the_same_training(tmp_path: Path) -> None:
    alone = start(tmp_path, "and more")
    assert alone.wait(300) == 0, alone.communicate()
    for (_, err), code in together(tmp_path, {"oregon": "and more", "iowa": "and more"}, "sites.shares=[3,1]"):
        assert code == 0, err
    expected = losses(tmp_path / "alone/runs/r/main")
    for site in ("oregon", "iowa"):
        assert losses(tmp_path / site / "runs/r" / site) == pytest.approx(expected, rel=1e-5)
        log = (tmp_path / site / "runs/r" / site / "samples/rank-00000.jsonl").read_text().splitlines()
        first = [0, 6] if site == "oregon" else [6, 8]
        assert [json.loads(line) for line in log[1:]] == [[8 * step + edge for edge in first] for step in range(STEPS)]


@pytest.mark.slow
def test_different_data_is_refused_by_the_sources_name(tmp_path: Path) -> None:
    for (_, err), code in together(tmp_path, {"oregon": "and more", "iowa": "and less"}):
        assert code == 2, err
        assert "is configured differently in data.sources.pages (content)" in err
