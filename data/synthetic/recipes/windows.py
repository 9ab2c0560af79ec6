"""Long stretches of real text, none used twice in a pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from isthmus.data.synthetic.context import SeedDocument
from isthmus.data.synthetic.passages import paragraphs
from isthmus.data.synthetic.protocols import digest


@dataclass(frozen=True)
class Window:
    """Paragraphs in a row, with the documents that they are of."""

    parts: tuple[str, ...]
    parents: tuple[str, ...]


class Windows:
    """Cuts documents into windows of the lengths that are asked for, one after the other.

    A long document gives several windows; short ones stand in a row, each under its title. Each pass takes the
    documents in another order.
    """

    def __init__(
        self, documents: Callable[[], Iterator[SeedDocument]], count: Callable[[str], int], seed: int, passes: int
    ) -> None:
        self._documents, self._count = documents, count
        self._paragraphs = self._all(seed, passes)
        self._held: tuple[str, str] | None = None

    def take(self, tokens: int) -> Window | None:
        """Return the next window of at most `tokens` tokens, nearly full; None when too little text is left."""
        parts: list[str] = []
        parents: list[str] = []
        size = 0
        while True:
            found = self._held or next(self._paragraphs, None)
            self._held = None
            if found is None:
                return None
            owner, part = found
            length = self._count(part) + 1
            if size + length > tokens:
                if size < 0.6 * tokens:
                    continue  # a paragraph that is longer than what is missing: some table, left out
                self._held = found
                return Window(tuple(parts), tuple(dict.fromkeys(parents)))
            parts.append(part)
            parents.append(owner)
            size += length

    def _all(self, seed: int, passes: int) -> Iterator[tuple[str, str]]:
        for turn in range(passes):
            order: Sequence[SeedDocument] = sorted(
                self._documents(), key=lambda document: digest([seed, turn, document.id])
            )
            for document in order:
                for number, part in enumerate(paragraphs(document.text)):
                    titled = document.title and number == 0 and not part.startswith("#")
                    yield document.id, f"# {document.title}\n\n{part}" if titled else part


def spread(parts: Sequence[str], inserts: Sequence[str], random: Random) -> str:
    """Return the text with the inserts as paragraphs of their own, one in each of as many equal stretches."""
    size = len(parts) / len(inserts)
    places = [
        random.randrange(int(size * turn), max(int(size * turn) + 1, int(size * (turn + 1))))
        for turn in range(len(inserts))
    ]
    found = []
    for number, part in enumerate(parts):
        found += [insert for insert, place in zip(inserts, places, strict=True) if place == number]
        found.append(part)
    return "\n\n".join(found)
