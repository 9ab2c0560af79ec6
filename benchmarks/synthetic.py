"""What synthesis costs beside its generator.

    python benchmarks/synthetic.py [pipeline ...] [--json FILE]

pipeline: items per second from task to journal with a generator that takes no time, and what of it each part takes.
sandbox: milliseconds of a sandboxed run beside a bare process, and runs per second.
verifiers: right and wrong programs, labelled by many more tests than the frozen ones, and what those say.
sampling: tokens per second from a checkpoint, beside transformers' `generate` with the same weights.
checkpoint: a model trained on programs writes programs; how many the sandbox accepts.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import synthetic_execution
import synthetic_sampling

from isthmus.config import compose
from isthmus.data.synthetic.budget import Budget
from isthmus.data.synthetic.config import SynthesizeConfig
from isthmus.data.synthetic.journal import Journal
from isthmus.data.synthetic.journey import Journey, journey
from isthmus.data.synthetic.plan import plan_synthesis
from isthmus.data.synthetic.protocols import Completion, Request
from isthmus.data.synthetic.scheduler import Scheduler

_RECIPE = "recipe: mathematics\nitems: {items}\noptions: {{kinds: [ordering, percent, series], levels: [1, 2]}}\n"


class Instant:
    """Says what the template says, from memory: no time passes in it."""

    name = fingerprint = "instant"
    batch = 1

    def __init__(self, answers: dict[str, str], parallel: int) -> None:
        self._answers, self.parallel = answers, parallel

    def complete(self, requests: list[Request]) -> list[Completion]:
        return [Completion(self._answers[request.item.id], 50, 100, "stop") for request in requests]

    def stop(self) -> None:
        pass


def pipeline(items: int = 6_000) -> dict[str, Any]:
    """Work on items of a recipe whose verifiers are cheap; CPU and clock, called in place and on threads."""
    found: dict[str, Any] = {"items": items}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(_RECIPE.format(items=items))
        config = compose(SynthesizeConfig, "synthesize", [f"data={path}", f"out={folder}/out"])
        with closing(plan_synthesis(config, secrets={})) as plan:
            recipe = plan.rules.recipe
            begun = time.process_time()
            made = [item for _, item in zip(range(items), recipe.items(), strict=False)]
            found["making items, us"] = _micro(time.process_time() - begun, items)
            answers = {item.id: _template(recipe, item) for item in made}
            for parallel in (0, 16):
                journal = Journal(Path(folder, f"journal-{parallel}"))
                scheduler = Scheduler(
                    {"": Instant(answers, parallel)},
                    journal,
                    Budget(config.data.budget, plan.prices, journal.spent),
                    window=64,
                    checkers=2,
                    on_outcome=lambda number, outcome: None,
                )

                def journeys() -> Iterator[tuple[int, Journey]]:
                    return ((number, journey(number, item, plan.rules)) for number, item in enumerate(made))

                cpu, clock = time.process_time(), time.perf_counter()
                scheduler.run(journeys())
                cpu, clock = time.process_time() - cpu, time.perf_counter() - clock
                kind = f"{parallel} threads" if parallel else "in place"
                found[kind] = {
                    "items per second": round(items / clock),
                    "items per CPU second": round(items / cpu),
                    "CPU us per item": _micro(cpu, items),
                    "journal bytes per item": round(Path(folder, f"journal-{parallel}").stat().st_size / items),
                }
                journal.close()
            begun = time.process_time()
            Journal(Path(folder, "journal-0")).close()
            found["reading the journal again, us per item"] = _micro(time.process_time() - begun, items)
    return found


def _template(recipe: Any, item: Any) -> str:
    from random import Random

    return str(recipe.template(item, next(recipe.write(item.task))[0], Random(1)))


def _micro(seconds: float, items: int) -> float:
    return round(seconds / items * 1e6, 1)


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "pipeline": pipeline,
    "sandbox": synthetic_execution.sandbox,
    "verifiers": synthetic_execution.verifiers,
    "sampling": synthetic_sampling.sampling,
    "checkpoint": synthetic_sampling.checkpoint,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    results: dict[str, Any] = {"cores": os.cpu_count()}
    for part in chosen.parts or PARTS:
        results[part] = PARTS[part]()
        print(part, json.dumps(results[part], indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
