"""What is refused at the mixture's door."""

import json
from pathlib import Path

import numpy as np
import pytest

from isthmus.data.accounting import account
from isthmus.data.admission import Benchmarks, check_real_rest, check_real_share
from isthmus.data.config import DataConfig, DataKind, SourceConfig
from isthmus.data.corpus import build_corpus
from isthmus.data.dedup.benchmarks import benchmark_hashes
from isthmus.data.mixture import MixSource, Mixture, Phase
from isthmus.data.order import Shape
from isthmus.data.phases import PhaseLog
from isthmus.data.shards.imports import import_shards
from isthmus.data.shards.index import write_index
from isthmus.errors import UserError

WORDS = "one needs thirteen words in a row that a benchmark holds and a text too"


def mixture(made: float, anneal: float) -> Mixture:
    shape = Shape(windows=500, tokens=500 * 8 + 1, stride=8, chunk_windows=4, group_chunks=4)
    sources = {"real": MixSource(shape, "r", 1 - made), "made": MixSource(shape, "m", made)}
    phases = [Phase("main", 0, 100, {}), Phase("anneal", 100, None, {"made": anneal, "real": 1 - anneal})]
    return Mixture(sources=sources, phases=phases, seed=0, samples=200, window_tokens=8)


def test_the_floor_holds_in_every_phase() -> None:
    synthetic = {"made": True, "real": False}
    check_real_share(account(mixture(0.3, 0.5), synthetic, 0.5), synthetic, 0.5)
    with pytest.raises(
        UserError, match=r"data.real_floor: anneal has 40.0% real data, the floor is 50% \(synthetic: made\)"
    ):
        check_real_share(account(mixture(0.3, 0.6), synthetic, 0.5), synthetic, 0.5)
    with pytest.raises(UserError, match=r"main has 30\.0% real data"):
        check_real_share(account(mixture(0.7, 0.1), synthetic, 0.5), synthetic, 0.5)
    check_real_share(account(mixture(0.7, 0.9), synthetic, 0.0), synthetic, 0.0)


def test_an_edited_mixture_is_looked_at_from_where_it_takes_over() -> None:
    synthetic = {"made": True, "real": False}

    def check(edited: Mixture, sample: int) -> None:
        log = PhaseLog.begin(mixture(0.3, 0.3))
        assert log.go_on(edited, sample)
        check_real_rest(edited, log.order(), sample, synthetic, 0.5)

    check(mixture(0.5, 0.5), 9)  # 45 of 91: an odd sample is no reason to refuse
    check(mixture(0.9, 0.5), 100)  # what is over is not asked about
    with pytest.raises(UserError, match=r"main from sample 9 on has 39\.6% real data"):
        check(mixture(0.6, 0.5), 9)
    with pytest.raises(UserError, match=r"anneal from sample 100 on has 40\.0% real data"):
        check(mixture(0.5, 0.6), 9)


def dataset(folder: Path, kinds: dict[str, str], decontaminated: dict[str, list[str]]) -> Path:
    folder.mkdir()
    tokens = np.arange(300, dtype="<u2")
    (folder / "raw.bin").write_bytes(tokens.tobytes())
    write_index(folder / "raw.idx", np.dtype("<u2"), np.array([100, 200], dtype=np.int32))
    import_shards([folder / "raw"], folder, source="s", tokenizer={})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"kinds": kinds, "decontaminated": decontaminated}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def opened(folder: Path, tmp_path: Path, **more: object) -> bool:
    source = SourceConfig(path=str(folder), kind=DataKind.text)
    config = DataConfig(sources={"s": source}, cache_dir=str(tmp_path / "cache"), **more)  # type: ignore[arg-type]
    return build_corpus(config, 300).sources["s"].synthetic


def test_a_manifest_that_says_synthetic_is_believed_over_the_configuration(tmp_path: Path) -> None:
    assert opened(dataset(tmp_path / "a", {"s": "synthetic"}, {}), tmp_path)
    assert not opened(dataset(tmp_path / "c", {}, {}), tmp_path)


def test_the_mark_is_kept_by_files_beside_their_manifest(tmp_path: Path) -> None:
    made = dataset(tmp_path / "a", {"s": "synthetic"}, {})
    real = dataset(tmp_path / "c", {}, {})
    assert opened(made / "raw", tmp_path)
    assert not opened(real / "raw.bin", tmp_path)
    for prefixes, kinds in (([real / "raw"], {}), ([real / "raw", made / "raw"], {"t": "synthetic"})):
        manifest = import_shards(prefixes, tmp_path / f"of{len(prefixes)}", source="t", tokenizer={})
        assert manifest.kinds == kinds
    line = json.dumps({"text": "A text of some words. " * 9}) + "\n"
    for folder in (made, real):
        (folder / "documents.jsonl").write_text(line * 3)
    assert opened(made / "documents.jsonl", tmp_path)
    assert not opened(real / "documents.jsonl", tmp_path)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/documents.jsonl").write_text(line * 3)
    assert not opened(tmp_path / "begun/*.jsonl", tmp_path)
    (tmp_path / "begun/plan.json").write_text('{"hash": "00ff"}')
    assert opened(tmp_path / "begun", tmp_path)


def test_shards_must_have_been_held_against_the_benchmarks(tmp_path: Path) -> None:
    benchmark = tmp_path / "b.txt"
    benchmark.write_text(WORDS + "\n")
    held = benchmark_hashes([str(benchmark)], 13)
    more = {"benchmarks": [str(benchmark)]}
    assert not opened(dataset(tmp_path / "held", {}, held), tmp_path, **more)
    assert not opened(dataset(tmp_path / "shorter", {}, {"8": held["13"]}), tmp_path, **more)
    for name, recorded in {"never": {}, "longer": {"20": held["13"]}, "another": {"13": ["0" * 64]}}.items():
        with pytest.raises(UserError, match=r"data.sources.s: was not held against .*b.txt by 13 words"):
            opened(dataset(tmp_path / name, {}, recorded), tmp_path, **more)  # type: ignore[arg-type]


def test_texts_are_held_against_them_when_they_enter(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(WORDS + "\n")
    (tmp_path / "texts").mkdir()
    for number in range(4):
        (tmp_path / f"texts/{number}.txt").write_text(f"Text {number} says nothing of the kind. " * 30)
    source = SourceConfig(path=str(tmp_path / "texts"))
    config = DataConfig(sources={"t": source}, benchmarks=[str(tmp_path / "b.txt")], cache_dir=str(tmp_path / "cache"))
    assert build_corpus(config, 400).sources["t"].train
    (tmp_path / "texts/2.txt").write_text(f"Before that: {WORDS}, and after it more.")
    with pytest.raises(UserError, match=r"data.sources.t: 2.txt has a benchmark's words: one needs"):
        build_corpus(config, 400)
    assert not Benchmarks([], 13)
