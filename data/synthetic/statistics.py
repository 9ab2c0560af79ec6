"""What became of every item, added up in any order to the same whole."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

STAGES = ("generate", "verify", "judge")
_EXCERPT = 1_500  # characters of an example
KEPT = "kept"


@dataclass
class Statistics:
    """Counts of a run.

    `reasons` maps `stage: reason` to tries; `topics` to [tries, accepted]; `votes` holds, for each pair of judges, the
    counts of (both 1, only the first, only the second, both 0).
    """

    examples_each: int = 3
    items: int = 0
    items_kept: int = 0
    tries: int = 0
    generated: int = 0
    verified: int = 0
    verified_first: int = 0
    accepted: int = 0
    repaired: int = 0
    repaired_verified: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kept_tokens: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    topics: dict[str, list[int]] = field(default_factory=dict)
    verifiers: dict[str, list[int]] = field(default_factory=dict)
    judges: dict[str, list[int]] = field(default_factory=dict)
    votes: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)

    def add(self, outcome: dict[str, Any]) -> None:
        """Count an item."""
        self.items += 1
        self.items_kept += any(entry["stage"] == "accepted" for entry in outcome["tries"])
        for entry in outcome["tries"]:
            self._add_try(outcome, entry)

    @property
    def spent_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def funnel(self) -> list[tuple[str, int]]:
        """Return the tries that were left after each stage."""
        rows = [("tries", self.tries), ("answered", self.generated), ("verified", self.verified)]
        return [*rows, *([("judged well", self.accepted)] if self.judges else [])]

    def _add_try(self, outcome: dict[str, Any], entry: dict[str, Any]) -> None:
        stage, accepted = entry["stage"], entry["stage"] == "accepted"
        verified = stage in ("judge", "accepted")
        self.tries += 1
        self.generated += stage != "generate"
        self.verified += verified
        self.verified_first += verified and not entry["repairs"]
        self.repaired += entry["repairs"] > 0
        self.repaired_verified += verified and entry["repairs"] > 0
        self.accepted += accepted
        self.prompt_tokens += entry["prompt_tokens"]
        self.completion_tokens += entry["completion_tokens"]
        self.kept_tokens += entry["kept_tokens"]
        topic = self.topics.setdefault(outcome["topic"], [0, 0])
        topic[0] += 1
        topic[1] += accepted
        if not accepted:
            self.reasons[f"{stage}: {entry['reason']}"] += 1
        judged = [verdict for verdict in entry["verdicts"] if "scores" in verdict]
        for verdict in entry["verdicts"]:
            counts = (self.judges if "scores" in verdict else self.verifiers).setdefault(verdict["by"], [0, 0])
            counts[0] += 1
            counts[1] += verdict["ok"]
        self._agreement(judged)
        label = KEPT if accepted else f"{stage}: {entry['reason']}"
        self._example(label, f"{outcome['item']}, try {entry['index'] + 1}", entry["text"])
        if entry["first"]:
            self.reasons[f"repair after {entry['first']}"] += 1

    def _agreement(self, judged: Sequence[dict[str, Any]]) -> None:
        for at, one in enumerate(judged):
            for two in judged[at + 1 :]:
                cells = self.votes.setdefault((one["by"], two["by"]), [0, 0, 0, 0])
                cells[2 * (not one["ok"]) + (not two["ok"])] += 1

    def _example(self, label: str, place: str, text: str) -> None:
        """Keep those of the lowest hashes: a choice that does not depend on the order in which they come."""
        rows = self.examples.setdefault(label, [])
        rows.append((hashlib.blake2b(f"{label}/{place}".encode(), digest_size=8).hexdigest(), place, text[:_EXCERPT]))
        rows.sort()
        del rows[self.examples_each :]


def kappa(cells: Sequence[int]) -> float:
    """Return Cohen's kappa (1960) of (both yes, only the first, only the second, both no): agreement beyond chance.

    1 where both always say the same, even if they say it of everything.
    """
    both, first, second, neither = cells
    total = sum(cells)
    if not total or both + neither == total:
        return 1.0
    observed = (both + neither) / total
    chance = ((both + first) * (both + second) + (neither + first) * (neither + second)) / total**2
    return (observed - chance) / (1 - chance)
