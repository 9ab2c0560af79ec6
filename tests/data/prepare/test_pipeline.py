"""The guarantee: the same bits with any number of workers, wherever it was interrupted, on any machine."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from support.archives import page_record
from support.corpora import as_page, sample_pages, write_corpus

from isthmus.config import compose
from isthmus.data.prepare.config import PrepareConfig
from isthmus.data.prepare.folder import BACKSTOP, WorkFolder
from isthmus.data.prepare.pipeline import Outcome, prepare
from isthmus.data.prepare.progress import Progress, StageProgress
from isthmus.data.shards.dataset import Dataset
from isthmus.data.shards.packing import fills
from isthmus.data.tokenizers import load_text_tokenizer
from isthmus.errors import UserError


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()))


def run(config: Path, out: Path, *overrides: str, progress: Progress | None = None) -> Outcome:
    words = [f"data={config}", f"out={out}", *overrides]
    return prepare(compose(PrepareConfig, "prepare", words), progress or quiet())


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "in")


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    run(corpus, out, "workers=1")
    return out


def test_every_record_is_accounted_for(reference: Path) -> None:
    summary = json.loads((reference / "summary.json").read_text())
    rejects = [json.loads(line) for line in (reference / "rejects.jsonl").read_text().splitlines()]
    for name, statistics in summary.items():
        dropped = sum(documents for documents, _ in statistics["dropped"].values())
        assert statistics["records"] == statistics["kept"] + dropped, name
        assert statistics["rejected"] == sum(row["records"] for row in rejects if row["source"] == name)
    crawl, talks = summary["crawl"]["dropped"], summary["talks"]["dropped"]
    assert crawl["answer.content_type"][0] == 1
    assert crawl["url.word"][0] == 1
    assert crawl["language.other_language"][0] == 2
    assert crawl["dedup.exact"][0] + crawl["dedup.near"][0] > 5
    assert talks["answer.translation"][0] == talks["answer.same_track"][0] == 1
    reasons = {row["reason"].partition(":")[0] for row in rejects}
    assert {"corrupt gzip", "truncated gzip", "no JSON", "no text in the field 'text'", "corrupt captions"} <= reasons


def test_every_token_can_be_traced(reference: Path) -> None:
    dataset = Dataset(reference)
    assert not list(dataset.damaged())
    assert len(dataset.shards) > 3
    tokenizer = load_text_tokenizer(str(reference / "tokenizer.json"))
    assert dataset.manifest.tokenizer["sha256"] == tokenizer.hash
    found = [dataset.document(number) for number in range(dataset.documents)]
    pages = sample_pages()
    for document in found:
        assert document.tokens[-1] == tokenizer.end
        assert len(document.tokens) == document.lineage["tokens"]
        text = tokenizer.decode(document.tokens[:-1].tolist())
        assert len(text) == document.lineage["characters"]
        name = document.lineage["url"].rpartition("/")[2]
        if name in pages:
            assert pages[name].split("\n\n")[1][:60].replace("\n", " ") in text.replace("\n", " ")
    (talk,) = (document for document in found if "abcdef12345" in document.lineage["file"])
    about = json.loads(talk.lineage["about"])
    assert (about["title"], about["channel"], talk.lineage["licence"]) == ("Fire", "Earth", "CC-BY")
    assert (about["start"], about["track"], about["punctuated"]) == (0.0, "json3", False)
    notes = [document for document in found if document.lineage["source"] == "notes"]
    assert {document.lineage["licence"] for document in notes} == {"own"}
    assert sum(document.lineage["duplicates"] for document in found) == sum(
        statistics["dropped"].get(rule, [0])[0]
        for statistics in json.loads((reference / "summary.json").read_text()).values()
        for rule in ("dedup.exact", "dedup.near")
    )


def test_packed_samples_are_written_and_how_full_they_are(reference: Path) -> None:
    shards = Dataset(reference).shards
    assert {packing.sequence_length for shard in shards for packing in shard.packings} == {256}
    assert sum(packing.tokens for shard in shards for packing in shard.packings) == Dataset(reference).tokens
    fill = fills(shards)[256]
    assert 0.9 < fill <= 1
    assert f"samples of 256 tokens are {fill:.2%} full" in (reference / "report.html").read_text()


def test_megatron_reads_every_shard(reference: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = Dataset(reference)
    for manifest in dataset.shards:
        theirs = IndexedDataset(str(reference / manifest.name))
        with dataset.open(manifest) as ours:
            assert len(theirs) == len(ours) == manifest.documents
            for number in range(len(ours)):
                assert np.array_equal(theirs[number], ours.document(number))


@pytest.mark.parametrize("workers", [2, 7])
def test_any_number_of_workers_gives_the_same_bits(workers: int, corpus: Path, reference: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out", f"workers={workers}")
    assert contents(tmp_path / "out") == contents(reference)


def test_input_elsewhere_gives_the_same_bits(reference: Path, tmp_path: Path) -> None:
    config = write_corpus(tmp_path / "another/place/in")
    run(config, tmp_path / "out", "workers=1")
    assert contents(tmp_path / "out") == contents(reference)


class _Interrupting(Progress):
    """Stops the preparation like Ctrl-C after so many finished tasks."""

    def __init__(self, after: int) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.left = after

    def stage(self, name: str, totals: dict[str, int]) -> Any:
        progress = self

        class Counting(StageProgress):
            def finish(self, *arguments: Any) -> None:
                progress.left -= 1
                if progress.left <= 0:
                    raise KeyboardInterrupt
                super().finish(*arguments)

        shown = super().stage(name, totals)

        class Swap:
            def __enter__(self) -> StageProgress:
                found = shown.__enter__()
                found.__class__ = Counting
                return found

            def __exit__(self, *error: object) -> Any:
                return shown.__exit__(*error)

        return Swap()


def test_interrupted_again_and_again_it_ends_with_the_same_bits(corpus: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    interrupted = 0
    for after in (1, 4, 6, 9, 2, 7, 5, 11, 3, 1000):
        try:
            run(corpus, out, "workers=2", progress=_Interrupting(after))
        except KeyboardInterrupt:
            interrupted += 1
            assert not (out / "manifest.json").exists()
            continue
        break
    assert interrupted >= 5
    assert contents(out) == contents(reference)
    assert run(corpus, out).already


class _Murderous(Progress):
    """Kills a worker, as a kernel short of memory would, at some of the finished tasks."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.finished = self.killed = 0

    def stage(self, name: str, totals: dict[str, int]) -> Any:
        progress = self
        shown = super().stage(name, totals)

        class Killing(StageProgress):
            def finish(self, *arguments: Any) -> None:
                progress.finished += 1
                if progress.finished in (2, 5, 22):
                    victim = multiprocessing.active_children()[0]
                    assert victim.pid is not None
                    os.kill(victim.pid, signal.SIGKILL)
                    progress.killed += 1
                super().finish(*arguments)

        class Swap:
            def __enter__(self) -> StageProgress:
                found = shown.__enter__()
                found.__class__ = Killing
                return found

            def __exit__(self, *error: object) -> Any:
                return shown.__exit__(*error)

        return Swap()


def test_workers_that_are_killed_are_replaced(corpus: Path, reference: Path, tmp_path: Path) -> None:
    progress = _Murderous()
    run(corpus, tmp_path / "out", "workers=2", progress=progress)
    assert progress.killed == 3
    assert contents(tmp_path / "out") == contents(reference)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(corpus: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "isthmus.launch.cli",
        "data",
        "prepare",
        f"data={corpus}",
        f"out={out}",
        "workers=1",
    ]
    for seconds in (1.6, 2.2, 2.8):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert contents(out) == contents(reference)


def monstrous_page() -> bytes:
    """A page within the limits that takes trafilatura seconds."""
    row = b"<table><tr><td>some words <a href='x'>here</a></td></tr></table>"
    return b"<html><body>" + row * 8_000 + b"</body></html>"


def test_a_page_that_hangs_is_journaled_and_dropped_in_every_unit_and_later_run(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pages = [page_record(f"http://a/{name}", as_page(name, text)) for name, text in list(sample_pages().items())[:4]]
    monster = page_record("http://a/monster", monstrous_page())
    (folder / "a.warc").write_bytes(b"".join([*pages[:2], monster]))
    (folder / "b.warc").write_bytes(b"".join([monster, *pages[2:]]))
    config = tmp_path / "mix.yaml"
    config.write_text(
        f"sources: {{crawl: {{kind: web, path: {folder}}}}}\nunit_bytes: 1000\n"
        f"tokenizer: {{path: {corpus.parent}/tokenizer.json}}\nweb: {{cpu_seconds: 0.8}}\n"
    )
    outcome = run(config, tmp_path / "out", "workers=1")
    (row,) = [json.loads(line) for line in (tmp_path / "out" / BACKSTOP).read_text().splitlines()]
    assert row["reason"] == "took too much CPU time"
    assert outcome.sources["crawl"].dropped["backstop.cpu"][0] == 2
    assert outcome.sources["crawl"].kept == 4
    # A later run that starts with the journal needs no process to die, whatever its limit.
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / BACKSTOP).write_bytes((tmp_path / "out" / BACKSTOP).read_bytes())
    run(config, tmp_path / "later", "workers=2")
    assert contents(tmp_path / "later") == contents(tmp_path / "out")


def test_a_file_whose_reading_hangs_is_rejected_and_the_rest_goes_on(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pages = [page_record(f"http://a/{name}", as_page(name, text)) for name, text in list(sample_pages().items())[:2]]
    (folder / "a.warc").write_bytes(b"".join(pages))
    # One record to pass over, of three (sparse) gigabytes: it stands for a library that does not come back.
    size = 3_000_000_000
    head = f"WARC/1.1\r\nWARC-Type: metadata\r\nContent-Length: {size}\r\n\r\n".encode()
    with (folder / "b.warc").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    config = tmp_path / "mix.yaml"
    config.write_text(
        f"sources: {{crawl: {{kind: web, path: {folder}}}}}\nmax_reject_fraction: 0.5\n"
        f"tokenizer: {{path: {corpus.parent}/tokenizer.json}}\nweb: {{cpu_seconds: 0.4}}\n"
    )
    outcome = run(config, tmp_path / "out", "workers=1")
    assert outcome.sources["crawl"].kept == 2
    (row,) = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert row["file"] == "b.warc"
    assert "took too much CPU time" in row["reason"]


def test_half_written_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    for name in (".crawl-00000.bin.123", ".manifest.json.x1_y", ".gitignore", "notes.txt"):
        (tmp_path / name).write_text("x")
    WorkFolder(tmp_path).remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".gitignore", "notes.txt"]


def test_a_dataset_is_no_input_of_itself(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of the folder that is written"):
        run(corpus, corpus.parent)


def test_a_torn_journal_line_is_passed_over(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path)
    (tmp_path / BACKSTOP).write_text('{"page": "aa", "reason": "x"}\n{"page": "b')
    assert folder.backstop() == {"aa": "x"}
    folder.add_to_backstop(b"\xcc", "y")
    assert folder.backstop() == {"aa": "x", "cc": "y"}


def test_too_many_rejects_fail_at_the_end_with_the_list(corpus: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"could not be read, 1.0% are allowed") as caught:
        run(corpus, out, "workers=1", "data.max_reject_fraction=0.01")
    assert str(out / "rejects.jsonl") in str(caught.value)
    assert (out / "rejects.jsonl").read_bytes() == (reference / "rejects.jsonl").read_bytes()
    assert not (out / "manifest.json").exists()
    run(corpus, out, "workers=1")
    assert contents(out) == contents(reference)


def test_what_would_mix_two_results_is_refused(corpus: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds another dataset"):
        run(corpus, reference, "data.seed=5")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(corpus, out, "workers=1", progress=_Interrupting(1))
    with pytest.raises(UserError, match="was begun with another configuration"):
        run(corpus, out, "data.web.c4.min_sentences=4")
    path = corpus.parent / "notes/0.txt"
    before = path.stat()
    os.utime(path, (before.st_atime, before.st_mtime + 5))
    with pytest.raises(UserError, match=r"notes/0.txt changed since"):
        run(corpus, out)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with WorkFolder(out).lock(), pytest.raises(UserError, match="another preparation is writing"):
        run(corpus, out)


REFUSED = {
    "no out": (["out=null"], "out: is not given"),
    "workers": (["workers=0"], "workers: is 0"),
    "threshold": (["data.dedup.threshold=0"], "data.dedup.threshold: is 0"),
    "limit": (["data.limits.line_bytes=0"], "data.limits.line_bytes: is 0"),
    "tokenizer": (["data.tokenizer.path=null"], "data.tokenizer.path: is not given"),
    "end": (["data.tokenizer.end_of_document=nope"], "has no token 'nope'"),
    "path": (["data.sources.crawl.path=/absent/x"], "nothing to read at /absent/x"),
    "kind": (["data.sources.crawl.kind=wab"], "data.sources.crawl.kind"),
    "metadata": (["data.sources.crawl.metadata=x"], "is of transcripts"),
    "benchmarks": (["data.decontaminate.files=[/absent.txt]"], "cannot be read"),
    "punctuate": (["data.transcripts.punctuate=nope:nope"], "cannot be imported"),
    "domains": (["data.web.urls.blocked_domains=/absent"], "data.web.urls.blocked_domains"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused_before_work_begins(case: str, corpus: Path, tmp_path: Path) -> None:
    overrides, expected = REFUSED[case]
    with pytest.raises(UserError) as caught:
        run(corpus, tmp_path / "out", *overrides)
    assert expected in str(caught.value)
    assert not (tmp_path / "out").exists()
