"""Documents that fall foul of the rules in many ways: real text, damaged by a seeded hand."""

import random
from collections.abc import Iterator

from isthmus.data.documents import read_source

_LONGEST = 4_000  # characters


def mutated_documents(count: int, seed: int) -> Iterator[str]:
    """Yield texts of the embedded corpus, most of them changed once or twice."""
    sources = [document.text for name in ("web", "transcripts") for document in read_source(name, None)]
    hand = random.Random(seed)
    changes = [
        lambda text: text,
        lambda text: text + "\n" + "\n".join(hand.choices(text.split("\n"), k=hand.randint(1, 20))),
        lambda text: "\n\n".join(hand.choices(text.split("\n\n"), k=8)),
        lambda text: "\n".join(f"- {line}" if hand.random() < 0.95 else line for line in text.split("\n")),
        lambda text: "\n".join(line + "..." if hand.random() < 0.4 else line for line in text.split("\n")),
        lambda text: " ".join(
            hand.choices(["#", "…", "7"], k=1)[0] if hand.random() < 0.25 else word for word in text.split(" ")
        ),
        lambda text: " ".join(text.split()[: hand.randint(40, 60)]),
        lambda text: text.replace(".", "").replace("!", ""),
        lambda text: text + " " + " ".join(text.split()[:12] * hand.randint(1, 8)),
        lambda text: "\n".join(line[: hand.randint(10, 40)] for line in text.split("\n")),
        lambda text: text.replace(" the ", " ").replace(" of ", " ").replace(" and ", " ").replace(" to ", " "),
        lambda text: (
            text
            + hand.choice(
                [
                    "",
                    "{",
                    "\nLorem ipsum dolor sit amet.",
                    "\nWe use cookies. See our privacy policy.",
                    "\nEnable JavaScript now please",
                ]
            )
        ),
        lambda text: "".join(hand.sample(text.split(" "), len(text.split(" ")))),
        lambda text: " ".join(word[:2] for word in text.split(" ")),
        lambda text: text.replace(" a", " #a"),
        lambda text: text.replace(" is ", " [12] is ").replace("\n", "\n[edit] ", 1),
    ]
    for _ in range(count):
        text = hand.choice(sources)
        start = hand.randrange(max(1, len(text) - 500))
        text = text[start : start + hand.randint(200, _LONGEST)]
        for _ in range(hand.randint(0, 2)):
            text = hand.choice(changes)(text)
        yield text
