"""A small corpus of every kind of input, with duplicates, damage and pages that the rules drop."""

import gzip
import html
import json
from importlib import resources
from pathlib import Path

from isthmus.data.tokenizer import train
from isthmus.files import write_atomically
from support.archives import page_record, warc_gz
from support.captions import json3, rolled_vtt, speak


def sample_pages() -> dict[str, str]:
    root = resources.files("isthmus.data") / "samples" / "web"
    return {entry.name.removesuffix(".md"): entry.read_text("utf-8") for entry in root.iterdir()}


def sample_talks() -> dict[str, bytes]:
    root = resources.files("isthmus.data") / "samples" / "transcripts"
    return {entry.name: entry.read_bytes() for entry in root.iterdir()}


def as_page(title: str, text: str, extra: str = "") -> bytes:
    paragraphs = "".join(f"<p>{html.escape(part)}</p>" for part in text.split("\n\n"))
    return (
        f"<html><head><title>{title}</title></head><body><nav><a href='/'>home {extra}</a></nav>"
        f"<article>{paragraphs}</article></body></html>"
    ).encode()


def write_corpus(folder: Path) -> Path:
    """Write input files and a configuration below `folder`; return the configuration."""
    pages = dict(sorted(sample_pages().items()))
    records = []
    for number, (name, text) in enumerate(pages.items()):
        records.append(page_record(f"http://site.example/{name}", as_page(name, text)))
        if number % 3 == 0:
            records.append(page_record(f"http://mirror.example/{name}", as_page(name, text, "mirror")))
    records.append(page_record("http://site.example/short", as_page("short", "Too short.")))
    records.insert(3, page_record("http://site.example/logo", b"\x89PNG", "image/png"))
    records.insert(2, page_record("http://xxx.example/a", as_page("a", next(iter(pages.values())))))
    members = warc_gz(records)
    members[6] = members[6][:100] + b"\xff\xff\xff" + members[6][103:]
    (folder / "crawl").mkdir(parents=True)
    half = len(members) // 2
    (folder / "crawl/a.warc.gz").write_bytes(b"".join(members[:half]))
    (folder / "crawl/b.warc.gz").write_bytes(b"".join(members[half:])[:-40])
    (folder / "crawl/page.html").write_bytes(as_page("file", pages["tides"] + "\n\nAn ending of its own."))
    rows = [json.dumps({"text": text, "url": f"http://rows.example/{name}"}) for name, text in list(pages.items())[::2]]
    rows[3:3] = ['{"text": 5}', '{"broken', json.dumps({"text": "Der alte Hafen liegt im Norden der Stadt. " * 20})]
    (folder / "crawl/rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "crawl/rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[:6]).encode(), mtime=0))
    (folder / "talks").mkdir()
    for name, content in sample_talks().items():
        (folder / "talks" / name).write_bytes(content)
    words = pages["volcanoes"].lower().replace(".", "").replace(",", "").split()[::-1]
    spoken = speak([(words[at : at + 6], False) for at in range(0, len(words), 6)])
    (folder / "talks/Fire [abcdef12345].en.vtt").write_bytes(rolled_vtt(spoken, tags=True))
    (folder / "talks/Fire [abcdef12345].en.json3").write_bytes(json3(spoken))
    (folder / "talks/Fire [abcdef12345].de.vtt").write_bytes(rolled_vtt(spoken, tags=True))
    (folder / "talks/broken.vtt").write_bytes(b"WEBVTT\n\nno cue")
    video = {"id": "abcdef12345", "title": "Fire", "channel": "Earth", "language": "en", "license": "CC-BY"}
    (folder / "videos.jsonl").write_text(json.dumps(video) + "\n")
    (folder / "notes").mkdir()
    for number, text in enumerate(list(pages.values())[:4]):
        (folder / f"notes/{number}.txt").write_text(f"Notes of day {number}.\n\n{text[::-1]}\nmail me@home.org")
    write_atomically(folder / "tokenizer.json", train(pages.values(), 1000).to_str().encode())
    config = folder / "mix.yaml"
    config.write_text(
        f"""
sources:
  crawl: {{kind: web, path: {folder}/crawl}}
  talks: {{kind: transcripts, path: {folder}/talks, metadata: {folder}/videos.jsonl}}
  notes: {{kind: text, path: "{folder}/notes/*.txt", licence: own}}
tokenizer: {{path: {folder}/tokenizer.json}}
shards: {{tokens: 12000, pack: [256]}}
unit_bytes: 15000
max_reject_fraction: 0.2
"""
    )
    return config
