"""The append-only log of what the order was made of: an edited mixture goes on from the current sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isthmus.data.mixture import Mixture
from isthmus.data.order import Order, Segment, Shape
from isthmus.errors import UserError


@dataclass(frozen=True)
class Entry:
    """A mixture and the first sample that it decides; its segments begin there."""

    start: int
    fingerprint: str
    mixture: dict[str, Any]  # what Mixture.describe returned
    segments: tuple[Segment, ...]


class PhaseLog:
    """Everything that decides the order, past and future, in plain values of a size that does not grow with the run."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = list(entries)

    @classmethod
    def begin(cls, mixture: Mixture) -> "PhaseLog":
        return cls([_entry(mixture, 0, mixture.segments())])

    @classmethod
    def load(cls, rows: Sequence[dict[str, Any]]) -> "PhaseLog":
        """Read what `dump` returned."""
        return cls(
            [
                Entry(
                    int(row["start"]),
                    row["fingerprint"],
                    row["mixture"],
                    tuple(Segment(*segment) for segment in row["segments"]),
                )
                for row in rows
            ]
        )

    def dump(self) -> list[dict[str, Any]]:
        return [
            {
                "start": entry.start,
                "fingerprint": entry.fingerprint,
                "mixture": entry.mixture,
                "segments": [[segment.start, dict(segment.quotas), segment.phase] for segment in entry.segments],
            }
            for entry in self.entries
        ]

    def order(self) -> Order:
        """Return the order of all samples, those of mixtures that have ended included."""
        shapes: dict[str, Shape] = {}
        segments: list[Segment] = []
        for entry in self.entries:
            for name, (_, shape, *_rest) in entry.mixture["sources"].items():
                shapes[name] = Shape(**shape)
            segments = [segment for segment in segments if segment.start < entry.start] + list(entry.segments)
        return Order(shapes, segments, self.entries[-1].mixture["seed"])

    def go_on(self, mixture: Mixture, sample: int) -> bool:
        """Let `mixture` decide from `sample` on; return whether that changed anything.

        Raises:
            UserError: a source's content, the seed or the samples' length is another than before.
        """
        last = self.entries[-1]
        if mixture.fingerprint == last.fingerprint:
            return False
        self._refuse(mixture.describe())
        order = self.order()
        planned = mixture.segments(sample, order.counts(0, sample))
        if _from(planned, sample) == _from(order.segments, sample):
            return False
        # A mixture that has not given a sample yet has left no trace.
        self.entries = [entry for entry in self.entries if entry.start < sample]
        self.entries.append(_entry(mixture, sample, planned))
        return True

    def _refuse(self, now: dict[str, Any]) -> None:
        last = self.entries[-1].mixture
        for name, where in (("seed", "train.seed"), ("window_tokens", "train.sequence_length")):
            if now[name] != last[name]:
                raise UserError(
                    f"is {now[name]} where the run began with {last[name]}: its samples are counted in that order",
                    where=where,
                    fix="set it back, or start another run",
                )
        before = {name: source for entry in self.entries for name, source in entry.mixture["sources"].items()}
        for name, source in now["sources"].items():
            if name not in before:
                continue
            if bool(source[1]["tokens"]) != bool(before[name][1]["tokens"]):
                was = "stream" if before[name][1]["tokens"] else "best_fit"
                raise UserError(f"was {was} when this run began", where="data.packing", fix="set it back")
            if source[0] != before[name][0]:
                raise UserError(
                    f"holds other data ({source[0]}) than when this run read it ({before[name][0]})",
                    where=f"data.sources.{name}",
                    fix="restore it, or give what is new a name of its own",
                )
            if source[1] != before[name][1]:
                raise UserError(
                    "its windows are cut or shuffled differently than when this run read it",
                    where=f"data.sources.{name}",
                    fix="set data.held_out* and data.shuffle_* back, or start another run",
                )


def _entry(mixture: Mixture, start: int, segments: Sequence[Segment]) -> Entry:
    return Entry(start, mixture.fingerprint, mixture.describe(), tuple(segments))


def _from(segments: Sequence[Segment], sample: int) -> list[tuple[int, dict[str, int]]]:
    """Return what is left of segments from a sample on."""
    running = [segment for segment in segments if segment.start <= sample][-1:]
    later = [segment for segment in segments if segment.start > sample]
    return [(max(sample, segment.start), dict(segment.quotas)) for segment in running + later]
