"""What a recipe is built from, beside its options."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

CHARACTERS_PER_TOKEN = 4  # of English text, where no tokenizer is given


@dataclass(frozen=True, slots=True)
class SeedDocument:
    """A real text that items are made of; `id` names it, with a hash of what it says."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Context:
    """Args:
    seed: of everything that is chosen at random.
    documents: reads the seeds, always in the same order.
    count_tokens: of the configured tokenizer, or about four characters each.
    """

    seed: int
    documents: Callable[[], Iterator[SeedDocument]]
    count_tokens: Callable[[str], int] = lambda text: len(text) // CHARACTERS_PER_TOKEN
