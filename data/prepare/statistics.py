"""Counts, histograms and samples of what was kept and dropped; parts add up in any order to the same whole."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from isthmus.data.prepare.documents import Document, Dropped, Measures

_EXCERPT = 600  # characters
KEPT = "kept"


@dataclass
class Statistics:
    """Of a unit, a source or a whole preparation.

    `dropped` maps rules to [documents, bytes]; `histograms` map measures to {bin: [kept, dropped]}; `samples` map rules
    (and `kept`) to rows that begin with the number by which they were chosen.
    """

    records: int = 0
    rejected: int = 0
    input_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    tokens: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    histograms: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    samples: dict[str, list[list[Any]]] = field(default_factory=dict)

    def keep(self, document: Document, *, size: int, seed: int, samples: int) -> None:
        self.kept += 1
        self.kept_bytes += size
        self._measure(document.measures, 0)
        self.sample(KEPT, document.file, document.offset, document.url, document.text, seed=seed, samples=samples)

    def drop(self, dropped: Dropped, *, seed: int, samples: int) -> None:
        record = dropped.record
        self.count_drop(dropped.rule, 1, len(dropped.text.encode("utf-8", "surrogatepass")))
        self._measure(dropped.measures, 1)
        self.sample(dropped.rule, record.file, record.offset, record.url, dropped.text, seed=seed, samples=samples)

    def count_drop(self, rule: str, documents: int, size: int) -> None:
        counts = self.dropped.setdefault(rule, [0, 0])
        counts[0] += documents
        counts[1] += size

    def sample(self, rule: str, file: str, offset: int, url: str, text: str, *, seed: int, samples: int) -> None:
        """Keep the rows of the lowest hashes: a choice that does not depend on the order in which they come."""
        rows = self.samples.setdefault(rule, [])
        place = f"{seed}/{rule}/{file}/{offset}".encode("utf-8", "surrogatepass")
        number = hashlib.blake2b(place, digest_size=8).hexdigest()
        if len(rows) < samples or (rows and number < rows[-1][0]):
            rows.append([number, file, offset, url, text[:_EXCERPT]])
            rows.sort(key=lambda row: row[0])
            del rows[samples:]

    def add(self, other: "Statistics", samples: int) -> None:
        for name in ("records", "rejected", "input_bytes", "kept", "kept_bytes", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for rule, (documents, size) in other.dropped.items():
            self.count_drop(rule, documents, size)
        for measure, bins in other.histograms.items():
            for label, counts in bins.items():
                mine = self.histograms.setdefault(measure, {}).setdefault(label, [0, 0])
                mine[0] += counts[0]
                mine[1] += counts[1]
        for rule, rows in other.samples.items():
            merged = sorted([*self.samples.get(rule, []), *rows], key=lambda row: row[0])
            self.samples[rule] = merged[:samples]

    def _measure(self, measures: Measures, column: int) -> None:
        for name, value in measures.items():
            self.histograms.setdefault(name, {}).setdefault(str(value), [0, 0])[column] += 1
