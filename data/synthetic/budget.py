"""Budgets that hold with many requests under way: what a request may cost is set aside before it leaves."""

import threading
from collections.abc import Mapping

from isthmus.data.synthetic.config import BudgetConfig, GeneratorConfig
from isthmus.data.synthetic.journal import Answer, Spent
from isthmus.data.synthetic.protocols import Request

CHARACTERS_PER_TOKEN = 3.0  # on the safe side for English text and for code; settled by what the server counted


def prompt_estimate(request: Request) -> int:
    """Return about how many tokens a prompt has."""
    return int(sum(len(text) for _, text in request.prompt.messages) / CHARACTERS_PER_TOKEN) + 8


class Budget:
    """Counts what was spent in all runs and what is under way, for any number of threads."""

    def __init__(self, limits: BudgetConfig, generators: Mapping[str, GeneratorConfig], spent: Spent) -> None:
        self._limits, self._generators = limits, generators
        self._lock = threading.Lock()
        self._requests, self._tokens, self._cost = spent.requests, spent.tokens, spent.cost

    def reserve(self, generator: str, request: Request) -> bool:
        """Set the most aside that a request may cost; return False if that is more than is left."""
        tokens, cost = self._most(generator, request)
        limits = self._limits
        with self._lock:
            fits = (
                (limits.requests is None or self._requests + 1 <= limits.requests)
                and (limits.tokens is None or self._tokens + tokens <= limits.tokens)
                and (limits.cost is None or self._cost + cost <= limits.cost)
            )
            if fits:
                self._requests += 1
                self._tokens += tokens
                self._cost += cost
            return fits

    def settle(self, generator: str, request: Request, answer: Answer) -> float:
        """Replace what was set aside by what it took (mostly nothing, if it was refused); return the cost."""
        tokens, cost = self._most(generator, request)
        price = self._generators[generator]
        used = answer.prompt_tokens + answer.completion_tokens
        paid = (answer.prompt_tokens * price.prompt_price + answer.completion_tokens * price.completion_price) / 1e6
        with self._lock:
            self._tokens += used - tokens
            self._cost += paid - cost
        return paid

    def _most(self, generator: str, request: Request) -> tuple[int, float]:
        price = self._generators[generator]
        prompt, completion = prompt_estimate(request), request.max_tokens
        return prompt + completion, (prompt * price.prompt_price + completion * price.completion_price) / 1e6
