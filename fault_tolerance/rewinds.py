"""Going back: which checkpoints a run no longer trusts after a loss spike, and which samples it leaves out then.

A decision is written to the run folder before anybody leaves, and the ranks are started again: a restart is exact, so
the way back is too. Each attempt reads the decisions anew; doing what they say twice changes nothing.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from isthmus.errors import UserError
from isthmus.fault_tolerance.store import Found
from isthmus.files import write_json

REWINDS = "rewinds.json"


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """One decision to go back.

    Attributes:
        site: that asked for it.
        step: that was judged, with the reason `why`.
        newest_trusted: step; of what was saved until the decision, nothing newer is used.
        skip: samples [start, stop) that have no loss from then on.
        attempt: the last one of this site whose checkpoints it is about; each site counts its own.
    """

    site: str
    step: int
    why: str
    newest_trusted: int
    skip: tuple[int, int]
    attempt: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        """The same in all sites, whichever of them asked: with exact sync all do."""
        return self.step, self.newest_trusted, self.skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Rewind":
        start, stop = value["skip"]
        return cls(**{**value, "skip": (int(start), int(stop))})


class RewindLog:
    """The decisions of a run, in `rewinds.json` of the folder of each site."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REWINDS
        self.entries: list[Rewind] = []

    def read(self) -> None:
        """Take up what earlier attempts have decided.

        Raises:
            UserError: the file is damaged: the run might train on what it had left out.
        """
        try:
            self.entries = [Rewind.from_json(entry) for entry in json.loads(self._path.read_text())]
        except FileNotFoundError:
            self.entries = []
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"is damaged ({type(error).__name__})", where=str(self._path), fix="remove it to forget all rewinds"
            ) from None

    def add(self, entries: Iterable[Rewind], attempt: int) -> list[Rewind]:
        """Write down those that are not known yet, as decided in this site's `attempt`; return them."""
        known = {entry.key for entry in self.entries}
        new: list[Rewind] = []
        for entry in entries:
            if entry.key not in known:
                known.add(entry.key)
                new.append(replace(entry, attempt=attempt))
        if new:
            self.entries = [*self.entries, *new]
            write_json(self._path, [entry.to_json() for entry in self.entries])
        return new

    def forget(self) -> None:
        """The run begins anew, and with it all samples."""
        self.entries = []
        self._path.unlink(missing_ok=True)

    @property
    def last_attempt(self) -> int:
        return max((entry.attempt for entry in self.entries), default=0)


def distrusted(found: Sequence[Found], rewinds: Sequence[Rewind]) -> list[Found]:
    """Return the checkpoints that a rewind has made worthless: saved before it, and too new."""
    return [
        entry
        for entry in found
        if any(entry.attempt <= rewind.attempt and entry.step > rewind.newest_trusted for rewind in rewinds)
    ]


def choose_step(trusted: Sequence[set[int]], distrusted_too: Sequence[set[int]]) -> int | None:
    """Return the step to go on from, of those that each site trusts, or else holds; None: from the beginning.

    Where a rewind leaves no checkpoint that is old enough, the oldest one is the best there is.
    """
    if common := set.intersection(*trusted):
        return max(common)
    common = set.intersection(*(a | b for a, b in zip(trusted, distrusted_too, strict=True)))
    return min(common) if common else None
