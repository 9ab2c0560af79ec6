"""Data preparation on real pages: end to end from a WARC that wget made, stage by stage beside datatrove, and memory.

    python benchmarks/prepare.py --pages FOLDER [--count 2000] [--peer-python PYTHON] [--out FILE]

FOLDER is a documentation tree of HTML (Debian: python3.11-doc, debian-handbook, linux-doc-6.1, git-doc, unpacked with
`dpkg -x`). It is served on loopback and fetched by `wget --warc-file`. PYTHON is an interpreter that has datatrove with
trafilatura, spacy, ftfy and xxhash. Figures are CPU seconds, children included, per MB of a stage's input.
"""

import argparse
import contextlib
import functools
import http.server
import json
import os
import resource
import shutil
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isthmus.data.dedup.components import survivors
from isthmus.data.dedup.keys import KeyWriter
from isthmus.data.dedup.pairs import Corpus, near_duplicates
from isthmus.data.dedup.signatures import MinHasher
from isthmus.data.filters.c4 import c4
from isthmus.data.filters.config import C4Rules, FineWebRules, GopherQuality, GopherRepetition, PiiRules
from isthmus.data.filters.fineweb import fineweb
from isthmus.data.filters.gopher import gopher_quality, gopher_repetition
from isthmus.data.filters.normalise import normalise
from isthmus.data.filters.pii import mask
from isthmus.data.filters.text import TextView
from isthmus.data.prepare.documents import warm_up
from isthmus.data.readers.files import open_file
from isthmus.data.readers.records import Form, Limits, Record
from isthmus.data.readers.streams import Stream
from isthmus.data.readers.warc import read_warc
from isthmus.data.shards.dataset import Dataset
from isthmus.data.tokenizers import load_text_tokenizer
from isthmus.data.web.extract import Extracted, decode_page, extract, page_hash

AFTER_EXTRACTION = ("normalise", "gopher_repetition", "gopher_quality", "c4", "fineweb", "minhash", "pii")


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()


def fetch(pages: Path, count: int, work: Path) -> Path:
    """Fetch `count` real pages, evenly over the tree, into one WARC file."""
    files = sorted(path for path in pages.rglob("*.html") if path.is_file() and not path.is_symlink())
    if len(files) < count:
        sys.exit(f"{pages} holds {len(files)} pages, fewer than {count}")
    chosen = [files[len(files) * number // count] for number in range(count)]
    with served(pages) as address:
        urls = "\n".join(f"{address}/{path.relative_to(pages).as_posix()}" for path in chosen)
        (work / "urls.txt").write_text(urls)
        command = ["wget", "--quiet", "--input-file=urls.txt", "--warc-file=pages", "--output-document=/dev/null"]
        subprocess.run(command, cwd=work, check=True)
    return work / "pages.warc.gz"


def read_pages(warc: Path) -> list[Record]:
    with open_file(str(warc)) as raw:
        entries = list(read_warc(Stream(raw, Limits(), name=warc.name), warc.name, Limits()))
    return [entry for entry in entries if isinstance(entry, Record) and entry.form is Form.html]


def isthmus(*words: str, cwd: Path) -> dict[str, Any]:
    """Run the command and return its JSON with CPU seconds, seconds and the largest process's memory."""
    command = [sys.executable, "-m", "isthmus.launch.cli", *words, "--json"]
    measure = (
        "import json, resource, subprocess, sys, time; began = time.monotonic();"
        "done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(json.dumps([done.returncode, done.stdout, used.ru_utime + used.ru_stime, used.ru_maxrss, "
        "time.monotonic() - began]))"
    )
    result = subprocess.run([sys.executable, "-c", measure, *command], cwd=cwd, stdout=subprocess.PIPE, text=True)
    code, out, cpu, kilobytes, seconds = json.loads(result.stdout)
    if code:
        sys.exit(f"isthmus {' '.join(words)} ended with {code}")
    return {**json.loads(out), "cpu_seconds": cpu, "seconds": seconds, "largest_process_MB": kilobytes * 1024 / 1e6}


def end_to_end(warc: Path, work: Path) -> dict[str, Any]:
    """Prepare the WARC with 1 and 2 workers: the same bits."""
    (work / "mix.yaml").write_text(
        f"sources: {{docs: {{kind: web, path: {warc}}}}}\ntokenizer: {{path: tokenizer.json}}\n"
        # Documentation is full of code; C4 would drop every page with a curly bracket.
        "web: {c4: {curly_bracket: false, javascript: false}}\n"
    )
    found = isthmus("data", "prepare", "data=mix.yaml", "out=one", "workers=1", cwd=work)
    isthmus("data", "prepare", "data=mix.yaml", "out=two", "workers=2", cwd=work)
    names = sorted(path.name for path in (work / "one").iterdir())
    same = names == sorted(path.name for path in (work / "two").iterdir()) and all(
        (work / "one" / name).read_bytes() == (work / "two" / name).read_bytes() for name in names
    )
    damaged = list(Dataset(work / "one").damaged())
    keys = ("records", "rejected", "documents", "tokens", "dropped", "cpu_seconds", "seconds", "largest_process_MB")
    return {**{key: found[key] for key in keys}, "same_bits_with_2_workers": same, "damaged": damaged}


class Stages:
    """Times our stages one after another on the same texts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.left: dict[str, int] = {}

    def run(self, name: str, work: Callable[[], list[Any]]) -> list[Any]:
        before = cpu_seconds()
        result = work()
        self.seconds[name] = cpu_seconds() - before
        self.left[name] = len(result)
        return result


def our_stages(pages: list[Record], texts: list[str], scratch: Path) -> Stages:
    stages = Stages()
    warm_up()
    limits = {"max_bytes": 4_000_000, "max_nodes": 100_000}
    stages.run(
        "extract",
        lambda: [
            found
            for page in pages
            if isinstance(found := extract(bytes(page.content), page.charset, **limits), Extracted)  # type: ignore[arg-type]
        ],
    )
    left = stages.run("normalise", lambda: [TextView(normalise(text)) for text in texts])
    repetition, quality, c4_rules, fineweb_rules = GopherRepetition(), GopherQuality(), C4Rules(), FineWebRules()
    left = stages.run("gopher_repetition", lambda: [view for view in left if not gopher_repetition(view, repetition)])
    left = stages.run("gopher_quality", lambda: [view for view in left if not gopher_quality(view, quality)])
    outcomes = stages.run("c4", lambda: [entry for entry in (c4(view, c4_rules) for view in left) if entry[1] is None])
    left = stages.run(
        "fineweb", lambda: [v for v in (TextView(text) for text, _ in outcomes) if not fineweb(v, fineweb_rules)]
    )
    kept = stages.run("minhash", lambda: _deduplicate([view.text for view in left], scratch))
    stages.run("pii", lambda: [mask(text, page_hash(text.encode()), PiiRules()) for text in kept])
    return stages


def _deduplicate(texts: list[str], scratch: Path) -> list[str]:
    hasher = MinHasher(bands=14, rows=8, ngram=5)
    writer = KeyWriter(scratch / "unit", hasher)
    for number, text in enumerate(texts):
        name = page_hash(f"{number}".encode())
        writer.add(name, name, hasher.signature(text))
    writer.close()
    corpus = Corpus.of([scratch / "unit"], [len(texts)])
    fates = survivors(corpus, [], [near_duplicates(corpus, band, 0, 1, 0.7) for band in range(14)]).fates
    return [text for text, fate in zip(texts, fates, strict=True) if fate == 0]


def tokenizing(texts: list[str], tokenizer: Path, rounds: int) -> dict[str, float]:
    """Compare our batches with bare `tokenizers`, in turn, on one thread."""
    from tokenizers import Tokenizer

    bare, ours = Tokenizer.from_file(str(tokenizer)), load_text_tokenizer(str(tokenizer))
    best = {"bare": float("inf"), "isthmus": float("inf")}
    for _ in range(rounds):
        before = time.process_time()
        for start in range(0, len(texts), 100):
            bare.encode_batch(texts[start : start + 100], add_special_tokens=False)
        best["bare"] = min(best["bare"], time.process_time() - before)
        before = time.process_time()
        for start in range(0, len(texts), 100):
            for ids in ours.encode(texts[start : start + 100]):
                np.append(ids, np.int32(ours.end)).astype("<u2").tobytes()
        best["isthmus"] = min(best["isthmus"], time.process_time() - before)
    return {**best, "ratio": best["bare"] / best["isthmus"]}


def ten_times_larger(texts: list[str], work: Path) -> dict[str, Any]:
    """Prepare the texts, and ten times as many, as one JSONL.gz file, which is one unit of work.

    Each copy has its letters moved along the alphabet, so that no copy is a duplicate of another; the source is `text`,
    so that no rule drops them.
    """
    import gzip

    found = {}
    for name, times in (("once", 1), ("ten_times", 10)):
        with gzip.open(work / f"{name}.jsonl.gz", "wt", compresslevel=1) as file:
            for copy in range(times):
                moved = string.ascii_lowercase[copy:] + string.ascii_lowercase[:copy]
                table = str.maketrans(string.ascii_lowercase, moved)
                file.writelines(json.dumps({"text": text.translate(table)}) + "\n" for text in texts)
        (work / f"{name}.yaml").write_text(
            f"sources: {{docs: {{kind: text, path: {name}.jsonl.gz}}}}\ntokenizer: {{path: tokenizer.json}}\n"
        )
        result = isthmus("data", "prepare", f"data={name}.yaml", f"out={name}", "workers=1", cwd=work)
        found[name] = {key: result[key] for key in ("records", "documents", "cpu_seconds", "largest_process_MB")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=Path, required=True)
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--stage-count", type=int, default=1_000, help="pages of the stage-by-stage comparison")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"
    work = Path(tempfile.mkdtemp(prefix="isthmus-prepare-"))
    try:
        results = measure(arguments, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(results, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    warc = fetch(arguments.pages, arguments.count, work)
    pages = read_pages(warc)
    step = max(1, len(pages) // arguments.stage_count)
    some = pages[::step][: arguments.stage_count]
    decoded = [decode_page(bytes(page.content), page.charset) for page in some]  # type: ignore[arg-type]
    limits = {"max_bytes": 4_000_000, "max_nodes": 100_000}
    extracted = [extract(bytes(page.content), page.charset, **limits) for page in some]  # type: ignore[arg-type]
    texts = [found.text for found in extracted if isinstance(found, Extracted)]
    with (work / "pages.jsonl").open("w") as file:
        file.writelines(json.dumps({"html": html}) + "\n" for html in decoded)
    with (work / "texts.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    train = ("data", "tokenizer", "out=tokenizer.json", "text=texts.jsonl", "vocab_size=16384")
    isthmus(*train, cwd=work)
    html_mb = sum(len(bytes(page.content)) for page in some) / 1e6  # type: ignore[arg-type]
    text_mb = sum(len(text.encode()) for text in texts) / 1e6
    results: dict[str, Any] = {
        "pages": {"fetched": len(pages), "in_stages": len(some), "html_MB": html_mb, "text_MB": text_mb},
        "end_to_end": end_to_end(warc, work),
        "tokenizing": tokenizing(texts, work / "tokenizer.json", arguments.rounds),
        "memory": ten_times_larger(texts, work),
    }
    results["stages"] = compare_stages(arguments, some, texts, work, html_mb, text_mb)
    return results


def compare_stages(
    arguments: argparse.Namespace, pages: list[Record], texts: list[str], work: Path, html_mb: float, text_mb: float
) -> dict[str, Any]:
    """Run both sides in turn; the best of the rounds counts."""
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    left: dict[str, Any] = {}
    for number in range(arguments.rounds):
        scratch = work / f"round-{number}"
        scratch.mkdir()
        stages = our_stages(pages, texts, scratch)
        left["isthmus"] = stages.left
        ours = {name: min(seconds, ours.get(name, seconds)) for name, seconds in stages.seconds.items()}
        if arguments.peer_python:
            command = [str(arguments.peer_python), str(Path(__file__).with_name("prepare_peer.py")), str(work)]
            answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            left["datatrove"] = answer["left"]
            theirs = {name: min(seconds, theirs.get(name, seconds)) for name, seconds in answer["stages"].items()}
    table = {}
    for name, seconds in ours.items():
        megabytes = html_mb if name == "extract" else text_mb
        table[name] = {"isthmus_s_per_MB": seconds / megabytes}
        if name in theirs:
            table[name] |= {"datatrove_s_per_MB": theirs[name] / megabytes, "ratio": theirs[name] / seconds}
    found: dict[str, Any] = {"by_stage": table, "documents_left": left}
    if theirs:
        found["after_extraction_ratio"] = sum(theirs[n] for n in AFTER_EXTRACTION) / sum(
            ours[n] for n in AFTER_EXTRACTION
        )
        found["extraction_ratio"] = theirs["extract"] / ours["extract"]
    return found


if __name__ == "__main__":
    main()
