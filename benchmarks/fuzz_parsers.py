"""Fuzz every parser for minutes: no crash, no hang, no unbounded memory.

    python benchmarks/fuzz_parsers.py [--minutes 10] [--seed 0] [--only NAME]

Each parser works in a process of its own on seeds that are cut, joined, repeated and overwritten by a seeded hand. A
parser fails if an exception other than its own comes out, one input takes more than 20 CPU seconds, or the process
exceeds 2 GB. A failing input is written to fuzz-NAME.bin.
"""

import argparse
import gzip
import io
import json
import multiprocessing
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import contextlib

import pyarrow as pa
import pyarrow.parquet as pq
from support.archives import page_record, stream_of, warc_gz
from support.captions import json3, rolled_srt, rolled_vtt, speak, srv3, whisper
from support.corpora import as_page, sample_pages

from isthmus.data.filters.c4 import c4
from isthmus.data.filters.config import C4Rules, FineWebRules, GopherQuality, GopherRepetition, PiiRules
from isthmus.data.filters.fineweb import fineweb
from isthmus.data.filters.gopher import gopher_quality, gopher_repetition
from isthmus.data.filters.normalise import normalise
from isthmus.data.filters.pii import mask
from isthmus.data.filters.text import TextView
from isthmus.data.prepare.config import TranscriptsConfig
from isthmus.data.readers.archives import read_tar, read_zip
from isthmus.data.readers.columns import read_parquet
from isthmus.data.readers.jsonl import read_jsonl
from isthmus.data.readers.records import Form, Limits, Record
from isthmus.data.readers.warc import read_warc
from isthmus.data.transcripts.document import BadCaptions, transcript_of
from isthmus.data.web.extract import extract

CPU_SECONDS = 20.0
MEMORY_BYTES = 2_000_000_000
LIMITS = Limits(record_bytes=1_000_000, line_bytes=1_000_000, expansion=100)


def captions(content: bytes) -> None:
    with contextlib.suppress(BadCaptions):
        transcript_of(Record("a [abcdef].en.vtt", 0, Form.captions, content), {}, TranscriptsConfig())


def page(content: bytes) -> None:
    extract(content, "utf-8", max_bytes=1_000_000, max_nodes=20_000)


def rules(content: bytes) -> None:
    text = normalise(content.decode("utf-8", "replace"))
    view = TextView(text)
    gopher_repetition(view, GopherRepetition())
    gopher_quality(view, GopherQuality(min_words=1))
    c4(view, C4Rules())
    fineweb(view, FineWebRules())
    mask(text, b"x", PiiRules())


def parsers() -> dict[str, tuple[Callable[[bytes], object], list[bytes]]]:
    """Return each parser with the seeds that it is fed from."""
    spoken = speak([(["one", "two"], False), (["three"], False), (["four", "five", "six"], True)])
    pages = [as_page(name, text) for name, text in sorted(sample_pages().items())[:4]]
    records = [page_record(f"http://a/{number}", content) for number, content in enumerate(pages)]
    lines = b"".join(json.dumps({"text": text, "id": name}).encode() + b"\n" for name, text in sample_pages().items())
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["some text", "more"] * 50, "id": list(range(100))}), table, row_group_size=30)
    captions_seeds = [rolled_vtt(spoken, tags=True), rolled_vtt(spoken, tags=False), rolled_srt(spoken), json3(spoken)]
    captions_seeds += [srv3(spoken), whisper(spoken), b"0:00:01.000,0:00:02.500\nHello[br]you\n\n"]
    captions_seeds.append(
        b'<tt xmlns="http://www.w3.org/ns/ttml"><body><p begin="1s" end="00:02:05.1">a<br/>b</p></body></tt>'
    )
    return {
        "warc": (lambda content: list(read_warc(stream_of(content), "a", LIMITS)), records),
        "warc.gz": (lambda content: list(read_warc(stream_of(content, name="a.gz"), "a", LIMITS)), warc_gz(records)),
        "jsonl": (lambda content: list(read_jsonl(stream_of(content), "a", LIMITS)), [lines, b"\n", b'{"text": "']),
        "jsonl.gz": (
            lambda content: list(read_jsonl(stream_of(content), "a", LIMITS)),
            [gzip.compress(lines, mtime=0)],
        ),
        "parquet": (lambda content: list(read_parquet(io.BytesIO(content), "a", LIMITS)), [table.getvalue()]),
        "zip": (lambda content: list(read_zip(io.BytesIO(content), "a", LIMITS)), [_zip(pages)]),
        "tar": (
            lambda content: list(read_tar(stream_of(content), "a", LIMITS)),
            [_tar(pages), gzip.compress(_tar(pages))],
        ),
        "html": (page, [*pages, b"<table><tr><td>", b"<![CDATA[", b"&#x110000;", b"<svg><title>"]),
        "captions": (captions, captions_seeds),
        "rules": (rules, [text.encode() for text in sample_pages().values()]),
    }


def mutate(hand: random.Random, seeds: list[bytes]) -> bytes:
    """Return a seed, or two joined, with a few cuts, copies and foreign bytes."""
    content = bytearray(hand.choice(seeds))
    if hand.random() < 0.3:
        content += hand.choice(seeds)
    for _ in range(hand.randint(0, 8)):
        at = hand.randrange(len(content) + 1)
        length = hand.choice([1, 1, 2, 8, 100, len(content) // 3])
        kind = hand.randrange(6)
        if kind == 0:
            del content[at : at + length]
        elif kind == 1:
            content[at:at] = content[at : at + length] * hand.choice([1, 2, 50])
        elif kind == 2:
            content[at : at + 1] = bytes([hand.randrange(256)])
        elif kind == 3:
            content[at:at] = hand.choice(
                [b"\0", b"\xff\xff\xff\xff", b"\r\n\r\n", b"<", b"-->", b"{", b"[" * 500, b"9" * 20]
            )
        elif kind == 4:
            content[at : at + length] = hand.randbytes(length if length < 1000 else 1000)
        else:
            other = hand.choice(seeds)
            start = hand.randrange(len(other) + 1)
            content[at:at] = other[start : start + length]
    return bytes(content[:2_000_000])


def fuzz(name: str, seconds: float, seed: int) -> None:
    """Feed one parser until the time is up; the kernel ends the process at an input that hangs or takes all memory."""
    resource.setrlimit(
        resource.RLIMIT_AS, (MEMORY_BYTES * 2, MEMORY_BYTES * 2)
    )  # address space, of which half is libraries
    parser, seeds = parsers()[name]
    hand = random.Random(f"{seed}/{name}")
    path = Path(f"fuzz-{name}.bin")
    ends = time.monotonic() + seconds
    count = slowest = 0
    while time.monotonic() < ends:
        content = mutate(hand, seeds)
        path.write_bytes(content)
        before = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        parser(content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        count += 1
        slowest = max(slowest, time.process_time() - before)
    path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{name}: {count} inputs, slowest {slowest:.2f} CPU s, peak {peak / 1e6:.0f} MB", flush=True)
    if peak > MEMORY_BYTES:
        raise MemoryError(f"{peak} bytes")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=10.0, help="for each parser")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", action="append")
    given = arguments.parse_args()
    failed = []
    for name in given.only or parsers():
        process = multiprocessing.get_context("fork").Process(target=fuzz, args=(name, given.minutes * 60, given.seed))
        process.start()
        process.join()
        if process.exitcode:
            failed.append(name)
            print(f"{name}: FAILED with {process.exitcode}; the input is in fuzz-{name}.bin", flush=True)
    return 1 if failed else 0


def _zip(pages: list[bytes]) -> bytes:
    import zipfile

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, body in enumerate(pages):
            archive.writestr(f"{number}.html", body)
    return content.getvalue()


def _tar(pages: list[bytes]) -> bytes:
    import tarfile

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number, body in enumerate(pages):
            member = tarfile.TarInfo(f"{number}.html")
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(main())
