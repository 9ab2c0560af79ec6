"""From accepted texts to a source of the mixture: decontaminated, without duplicates, in shards with lineage."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from isthmus.data.prepare.config import PrepareConfig, PrepareData, PrepareSource, SourceKind, TextConfig, TokenizerFile
from isthmus.data.prepare.folder import REJECTS, REPORT, SUMMARY, new_file
from isthmus.data.prepare.pipeline import prepare
from isthmus.data.prepare.progress import Progress
from isthmus.data.prepare.statistics import Statistics
from isthmus.data.shards.manifest import DATASET_MANIFEST, read_dataset_manifest, write_dataset_manifest
from isthmus.data.synthetic.journal import Journal
from isthmus.data.synthetic.plan import Plan
from isthmus.data.synthetic.protocols import digest
from isthmus.data.tokenizer import train
from isthmus.files import write_atomically

DOCUMENTS = "documents.jsonl"
LARGEST_TRAINED_VOCABULARY = 8_192
_LINEAGE = (
    "recipe", "item", "topic", "generator", "generator_hash", "prompt", "seed", "parents", "frozen", "requests",
    "verdicts",
    "repairs",
)  # fmt: skip
_NOT_PUBLISHED = {REPORT, SUMMARY, REJECTS, DATASET_MANIFEST}


def write_documents(path: Path, plan: Plan, journal: Journal) -> int:
    """Write the accepted texts of the run's items with their lineage, in the items' order; return their number."""
    count = 0
    main = plan.generators[""]
    with new_file(path) as file:
        for outcome in journal.finished(plan.data.items):
            for entry in outcome["tries"]:
                if entry["stage"] != "accepted":
                    continue
                first = entry["requests"][0] if entry["requests"] else {"prompt": "", "seed": plan.data.seed}
                row = {
                    "text": entry["text"],
                    "recipe": f"{plan.rules.recipe.name} {plan.rules.recipe.version}",
                    "item": outcome["item"],
                    "topic": outcome["topic"],
                    "generator": main.name,
                    "generator_hash": main.fingerprint,
                    "prompt": first["prompt"],
                    "seed": first["seed"],
                    "parents": outcome["parents"],
                    "frozen": outcome["frozen"],
                    "requests": entry["requests"],
                    "verdicts": entry["verdicts"],
                    "repairs": entry["repairs"],
                }
                file.write(json.dumps(row).encode() + b"\n")
                count += 1
    return count


def build_source(documents: Path, plan: Plan, work: Path, workers: int, console: Console) -> tuple[Path, Statistics]:
    """Prepare the documents in a folder below `work`; return it with what duplicates and benchmarks took."""
    data = plan.data
    with documents.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    folder = work / f"dataset-{digest([plan.settings, content])}"
    for other in work.glob("dataset-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    tokenizer = data.tokenizer
    if not tokenizer.path:
        path = work / "tokenizer.json"
        write_atomically(path, train(_texts(documents), LARGEST_TRAINED_VOCABULARY).to_str().encode())
        tokenizer = TokenizerFile(path=str(path))
    source = PrepareSource(
        kind=SourceKind.text, path=str(documents), about_fields=list(_LINEAGE), licence=data.seeds.licence
    )
    config = PrepareConfig(
        data=PrepareData(
            sources={plan.source: source},
            tokenizer=tokenizer,
            text=TextConfig(normalise=False),  # a text that was verified stays as it is
            dedup=data.dedup,
            decontaminate=data.decontaminate,
            shards=data.shards,
            samples=data.examples,
            max_reject_fraction=0.0,
        ),
        out=str(folder),
        workers=workers,
    )
    outcome = prepare(config, Progress(console))
    return folder, outcome.sources[plan.source]


def unpublish(out: Path) -> None:
    """Take an earlier, smaller dataset away: its manifest first, so that nothing incomplete is taken for whole."""
    if (out / DATASET_MANIFEST).exists():
        shards = [entry["name"] for entry in read_dataset_manifest(out).shards]
        (out / DATASET_MANIFEST).unlink()
        for name in shards:
            for path in out.glob(f"{name}.*"):
                path.unlink()


def publish(built: Path, out: Path, source: str) -> None:
    """Put the dataset's files into `out`, and the manifest last, which says that it is synthetic."""
    for path in sorted(built.iterdir()):
        if path.is_file() and path.name not in _NOT_PUBLISHED and not path.name.startswith("."):
            _place(path, out / path.name)
    manifest = read_dataset_manifest(built)
    write_dataset_manifest(out, dataclasses.replace(manifest, kinds={source: "synthetic"}))


def _place(path: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.link(path, temporary)
    if not temporary.exists():
        shutil.copyfile(path, temporary)
    os.replace(temporary, target)


def _texts(documents: Path) -> Iterator[str]:
    with documents.open("rb") as file:
        for line in file:
            row: dict[str, Any] = json.loads(line)
            yield str(row["text"])
