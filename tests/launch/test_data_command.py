"""`isthmus data` as a user meets it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.corpora import write_corpus
from support.ranks import isthmus_cli

from isthmus.data.shards.index import write_index
from isthmus.data.tokenizers import load_text_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder / "in")
    # A process of its own: it starts workers, which the harness's own processes may not.
    words = ["data", "prepare", "data=in/mix.yaml", "out=out", "workers=2", "--json"]
    command = [sys.executable, "-m", "isthmus.launch.cli", *words]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["documents"] == sum(source["kept"] for source in summary["sources"].values())
    assert "dedup.exact" in result.stderr, "the table of rules goes to standard error"
    return folder


def test_a_second_run_says_that_it_is_there(prepared: Path) -> None:
    result = isthmus_cli("data", "prepare", "data=in/mix.yaml", "out=out", cwd=prepared)
    assert result.code == 0, result.err
    assert "it was there already" in result.out


def test_inspect_shows_lineage_and_text(prepared: Path) -> None:
    result = isthmus_cli("data", "inspect", "out", "--sample", "3", "--verify", "--json", cwd=prepared)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert len(found["sample"]) == 3
    for document in found["sample"]:
        assert document["lineage"]["file"]
        assert len(document["text"]) == document["lineage"]["characters"] + len("<|endofdocument|>")
    shown = isthmus_cli("data", "inspect", "out", "--sample=1", cwd=prepared)
    assert "source: " in shown.out


def test_inspect_finds_damage(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "out", tmp_path / "copy")
    path = next((tmp_path / "copy").glob("*.bin"))
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    result = isthmus_cli("data", "inspect", "copy", "--verify", cwd=tmp_path)
    assert result.code == 2
    assert f"{path.name} is damaged" in result.err


def test_import_and_inspect_megatrons_files(tmp_path: Path) -> None:
    tokens = np.arange(300, dtype="<u2")
    (tmp_path / "corpus_text_document.bin").write_bytes(tokens.tobytes())
    write_index(tmp_path / "corpus_text_document.idx", np.dtype("<u2"), np.array([100, 200], dtype=np.int32))
    result = isthmus_cli("data", "import", "corpus_text_document", "out=there", "--json", cwd=tmp_path)
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"folder": "there", "documents": 2, "tokens": 300, "shards": 1}
    shown = isthmus_cli("data", "inspect", "there", "--sample", "2", "--verify", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert "give tokenizer=FILE" in shown.out
    again = isthmus_cli("data", "import", "corpus_text_document", "out=there", cwd=tmp_path)
    assert (again.code, again.err.count("\n")) == (2, 1)


def test_a_tokenizer_is_trained_on_files_and_on_a_dataset(prepared: Path, tmp_path: Path) -> None:
    words = [f"text={prepared}/in/notes", "vocab_size=400", "--json"]
    result = isthmus_cli("data", "tokenizer", "out=a.json", *words, cwd=tmp_path)
    assert result.code == 0, result.err
    assert json.loads(result.out)["entries"] == 400
    tokenizer = load_text_tokenizer(str(tmp_path / "a.json"))
    (ids,) = tokenizer.encode(["héllo wörld"])
    assert tokenizer.decode(ids.tolist()) == "héllo wörld"
    words = [f"text={prepared}/out", f"tokenizer={prepared}/out/tokenizer.json", "vocab_size=300", "max_bytes=5000"]
    result = isthmus_cli("data", "tokenizer", "out=b.json", *words, cwd=tmp_path)
    assert result.code == 0, result.err


def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(prepared: Path) -> None:
    words = ["data", "prepare", "data=in/mix.yaml", "out=again", "workers=2"]
    command = [sys.executable, "-m", "isthmus.launch.cli", *words]
    process = subprocess.Popen(
        command, cwd=prepared, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(prepared.glob("again/work/documents/*.json")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err == "isthmus: interrupted; finished work is kept, the same command goes on\n"
    assert subprocess.run(command, cwd=prepared, stdout=subprocess.DEVNULL).returncode == 0
    assert (prepared / "again/manifest.json").read_bytes() == (prepared / "out/manifest.json").read_bytes()


def test_help_names_sub_verbs_keys_and_defaults() -> None:
    assert "prepare" in isthmus_cli("data", "--help").out
    shown = isthmus_cli("data", "prepare", "--help")
    assert shown.code == 0
    for word in (
        "data.sources.NAME.kind",
        "data.web.gopher_quality.min_words (50)",
        "data.dedup.bands (14)",
        "workers",
    ):
        assert word in shown.out
    for verb in ("inspect", "tokenizer", "import", "pack"):
        assert isthmus_cli("data", verb, "--help").code == 0


REFUSED = {
    "no sub-verb": ([], 2, ""),
    "unknown sub-verb": (["prepair"], 2, "choose one of: prepare"),
    "no data": (["prepare", "out=x"], 2, "data=: is not given"),
    "embedded": (["prepare", "data=embedded", "out=x"], 2, "is no file of sources"),
    "absent file": (["prepare", "data=absent.yaml", "out=x"], 2, "there is no file absent.yaml"),
    "unknown key": (["prepare", "data=mix.yaml", "data.web.c5=1", "out=x"], 2, "there is no key 'data.web.c5'"),
    "option": (["inspect", "--smple"], 2, "is no option"),
    "no dataset": (["inspect", "."], 2, "holds no finished dataset"),
    "sample": (["inspect", ".", "--sample", "x"], 2, "--sample: is 'x'"),
    "no out": (["import", "x"], 2, "out: is not given"),
    "absent prefix": (["import", "x", "out=y"], 2, "cannot be read"),
    "no length": (["pack", "x"], 2, "sequence_length: is ''"),
    "nothing to pack": (["pack", ".", "sequence_length=8"], 2, "holds no finished dataset"),
    "no text": (["tokenizer", "out=x.json"], 2, "text: is not given"),
    "wrong size": (["tokenizer", "out=x.json", "text=.", "vocab_size=3"], 2, "vocab_size: is 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_get_one_line_and_exit_code_2(case: str, tmp_path: Path) -> None:
    words, code, expected = REFUSED[case]
    (tmp_path / "mix.yaml").write_text("sources: {a: {kind: text, path: x}}\n")
    result = isthmus_cli("data", *words, cwd=tmp_path)
    assert result.code == code
    assert expected in result.err
    assert result.err.count("\n") == (1 if expected else 0)


def _mixture(folder: Path) -> Path:
    (folder / "text").mkdir()
    for number in range(20):
        (folder / f"text/{number:02d}.txt").write_text(f"Document {number}. " + f"word{number} and more. " * 60)
    path = folder / "mix.yaml"
    path.write_text(
        "sources:\n"
        f"  few: {{path: {folder}/text/0*.txt, weight: 1, max_epochs: 2}}\n"
        f"  many: {{path: {folder}/text/*.txt, weight: 1}}\n"
        "phases:\n  - {name: first, tokens: 2048}\n  - {name: second, weights: {few: 0}}\n"
    )
    return path


def test_a_mixture_is_shown_trained_traced_and_audited(tmp_path: Path) -> None:
    mix = _mixture(tmp_path)
    keys = [
        f"data={mix}", f"data.cache_dir={tmp_path}/cache", "train.steps=10", "train.global_batch=8",
        "train.sequence_length=64",
    ]  # fmt: skip
    shown = isthmus_cli("data", "mix", *keys, "--json", "--html", "mix.html", cwd=tmp_path)
    assert shown.code == 0, shown.err
    plan = json.loads(shown.out)
    assert [phase["name"] for phase in plan["phases"]] == ["first", "second"]
    assert sum(entry["tokens"] for entry in plan["total"].values()) == 10 * 8 * 64
    assert plan["phases"][1]["sources"]["few"]["tokens"] == 0
    page = (tmp_path / "mix.html").read_text()
    assert "fingerprint" not in page
    assert plan["fingerprint"] in page
    refused = isthmus_cli("data", "mix", *keys, "data.sources.many.max_epochs=0.1", cwd=tmp_path)
    assert refused.code == 2
    assert re.search(r"needs [\d,]+ samples, and max_epochs leaves [\d,]+ \(.*\)", refused.err)

    trained = isthmus_cli(
        "train", *keys, "model=nano", "run.name=r", "data.log_samples=true", "data.skip=[[8,16]]", cwd=tmp_path
    )
    assert trained.code == 0, trained.err
    rows = [json.loads(line) for line in (tmp_path / "runs/r/main/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("skipped")] == [2]
    assert rows[-1]["tokens"] == 9 * 8 * 64
    assert rows[-1]["data_mix"] == {name: entry["tokens"] // 64 for name, entry in plan["total"].items()}
    audited = isthmus_cli("data", "audit", "runs/r", "--json", cwd=tmp_path)
    assert json.loads(audited.out) == {"samples": 80, "logs": 1, "clean": True, "missing": [], "repeated": []}
    where = isthmus_cli("data", "where", "runs/r/main", "--step", "7", "--json", cwd=tmp_path)
    assert where.code == 0, where.err
    samples = json.loads(where.out)["samples"]
    assert [row["sample"] for row in samples] == list(range(48, 56))
    for row in samples:
        assert row["source"] == "many"  # the second phase began at sample 32
        assert row["documents"][0]["tokens"][0] <= row["offset"] < row["documents"][0]["tokens"][1]
        assert row["documents"][0]["document"].endswith(".txt")


def test_a_dataset_is_packed_trained_on_and_traced(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "out", tmp_path / "set")
    packed = isthmus_cli("data", "pack", "set", "sequence_length=64", "--json", cwd=tmp_path)
    assert packed.code == 0, packed.err
    found = json.loads(packed.out)
    assert found["windows"] > 100
    assert 0.97 < found["fill"] <= 1
    again = isthmus_cli("data", "pack", "set", "sequence_length=64", cwd=tmp_path)
    assert "packed" not in again.out, "what is there is not written again"
    verified = isthmus_cli("data", "inspect", "set", "--verify", cwd=tmp_path)
    assert verified.code == 0, verified.err
    (tmp_path / "mix.yaml").write_text("sources:\n  all: {path: set}\npacking: best_fit\nmask_documents: true\n")
    keys = ["data=mix.yaml", "train.sequence_length=64", "train.steps=4", "train.global_batch=8", "eval.samples=4"]
    mixed = isthmus_cli("data", "mix", *keys, cwd=tmp_path)
    assert "samples are of whole documents and 9" in mixed.out, mixed.err
    other = isthmus_cli("data", "mix", *keys, "train.sequence_length=32", cwd=tmp_path)
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "is packed for samples of 64, 256, not of 32" in other.err
    trained = isthmus_cli("train", *keys, "model=nano", "run.name=r", "data.log_samples=true", cwd=tmp_path)
    assert trained.code == 0, trained.err
    audited = isthmus_cli("data", "audit", "runs/r", "--json", cwd=tmp_path)
    assert json.loads(audited.out) == {"samples": 32, "logs": 1, "clean": True, "missing": [], "repeated": []}
    where = isthmus_cli("data", "where", "runs/r/main", "--step", "2", "--json", cwd=tmp_path)
    assert where.code == 0, where.err
    rows = json.loads(where.out)["samples"]
    sizes = [sum(stop - start for start, stop in (entry["tokens"] for entry in row["documents"])) for row in rows]
    assert max(sizes) <= 65
    assert sum(sizes) > 6 * 60  # of 8 windows; one or two may be held out
    assert all(entry["lineage"]["file"] for row in rows for entry in row["documents"])
