"""The output folder: what is finished stays, whatever happens after.

Every unit of work leaves its files first and its summary last, by an atomic rename; a unit with a summary is done. The
`work` folder goes when the dataset is complete.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isthmus.errors import UserError
from isthmus.files import write_json

PLAN = "plan.json"
BACKSTOP = "backstop.jsonl"
REJECTS = "rejects.jsonl"
REPORT = "report.html"
SUMMARY = "summary.json"
_TEMPORARY = re.compile(r"\..+\.(bin|idx|pack|parquet|json|jsonl|html|model|tiktoken)\.[A-Za-z0-9_]+")


class WorkFolder:
    """Names of everything that a preparation writes below `out`."""

    def __init__(self, out: Path) -> None:
        self.out, self.work = out, out / "work"
        self.documents, self.dedup, self.tokens = (self.work / name for name in ("documents", "dedup", "tokens"))

    def create(self) -> None:
        for folder in (self.documents, self.dedup, self.tokens):
            folder.mkdir(parents=True, exist_ok=True)

    def summary(self, folder: Path, unit: str) -> dict[str, Any] | None:
        """Return the summary of a finished unit of a stage, or None."""
        try:
            content: dict[str, Any] = json.loads((folder / f"{unit}.json").read_text("utf-8"))
        except FileNotFoundError:
            return None
        return content

    def finish(self, folder: Path, unit: str, summary: dict[str, Any]) -> None:
        write_json(folder / f"{unit}.json", summary)

    def forget(self, folder: Path, unit: str) -> None:
        (folder / f"{unit}.json").unlink(missing_ok=True)

    def clear(self, folder: Path) -> None:
        """Remove what a stage made, because what it was made from changed."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def remove_leftovers(self) -> None:
        """Remove half-written files that a killed run left beside the finished ones."""
        for path in self.out.iterdir():
            if path.is_file() and _TEMPORARY.fullmatch(path.name):
                path.unlink()

    def remove_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def backstop(self) -> dict[str, str]:
        """Return the pages that ended a process: hash in hexadecimal, and how."""
        try:
            lines = (self.out / BACKSTOP).read_text("utf-8").splitlines()
        except FileNotFoundError:
            return {}
        found = {}
        for line in lines:
            with contextlib.suppress(ValueError, KeyError):  # the last line of a journal may be torn
                row = json.loads(line)
                found[row["page"]] = row["reason"]
        return found

    def add_to_backstop(self, page: bytes, reason: str) -> None:
        """Append to the journal, on disk before the next process starts."""
        path = self.out / BACKSTOP
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        with path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps({"page": page.hex(), "reason": reason}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            UserError: another process holds it, or the folder cannot be written.
        """
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            file = (self.work / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot be written: {error}", where="out", fix="choose another folder") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    "another preparation is writing to it", where=str(self.out), fix="wait for it or choose another out"
                ) from None
            yield
