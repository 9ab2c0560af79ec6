"""How fast checkpoints are sampled from, and what one that isthmus has trained gives as a generator."""

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

_PROMPT, _NEW, _BATCH = 64, 64, 16


def sampling(name: str = "tiny", repeats: int = 3) -> dict[str, Any]:
    """Continue 16 texts with isthmus and with transformers' `generate`, the same weights, in turn, on one thread."""
    import numpy as np
    import torch
    from support.llama import llama_of, whole_weights

    from isthmus.config import compose
    from isthmus.parallelism.config import ParallelConfig
    from isthmus.parallelism.groups import site_groups
    from isthmus.parallelism.inference import InferenceModel
    from isthmus.parallelism.topology import build_topology
    from isthmus.train.config import Config
    from isthmus.train.sampling import CheckpointSampler

    torch.set_num_threads(1)
    config = compose(Config, "train", [f"model={name}", "train.steps=1"])
    topology = build_topology(ParallelConfig(), 1)

    class Numbers:
        size, end, name, hash = config.model.vocab_size, -1, "numbers", "numbers"

        def encode(self, texts: list[str]) -> list[Any]:
            return [np.array([int(word) for word in text.split()]) for text in texts]

        def decode(self, tokens: list[int]) -> str:
            return " ".join(map(str, tokens))

    with site_groups(topology, rank=0, timeout=datetime.timedelta(seconds=60)) as groups:
        model = InferenceModel(config.model, config.train.precision, groups, slots=_BATCH, length=_PROMPT + _NEW)
        generator = torch.Generator().manual_seed(0)
        for where, flat in model.parameters():
            flat.copy_(
                torch.ones(flat.shape) if len(where.shape) == 1 else 0.02 * torch.randn(flat.shape, generator=generator)
            )
        llama = llama_of(config.model, whole_weights(model))
        sampler = CheckpointSampler(model, Numbers(), start=[], fingerprint="")
        tokens = torch.randint(0, config.model.vocab_size, (_BATCH, _PROMPT), generator=generator)
        prompts = [" ".join(map(str, row)) for row in tokens.tolist()]

        def ours(top_p: float) -> None:
            found = sampler.complete(
                prompts, max_tokens=_NEW, temperature=1.0, top_p=top_p, stop=(), seeds=range(_BATCH)
            )
            assert all(text.completion_tokens == _NEW for text in found)

        def theirs(top_p: float) -> None:
            with torch.no_grad():
                found = llama.generate(
                    tokens, attention_mask=torch.ones_like(tokens), do_sample=True, temperature=1.0, top_p=top_p,
                    top_k=0, max_new_tokens=_NEW, pad_token_id=0, use_cache=True,
                )  # fmt: skip
            assert found.shape[1] == _PROMPT + _NEW

        greedy = sampler.complete(prompts[:4], max_tokens=_NEW, temperature=0, top_p=1, stop=(), seeds=[0] * 4)
        with torch.no_grad():
            expected = llama.generate(
                tokens[:4],
                attention_mask=torch.ones_like(tokens[:4]),
                do_sample=False,
                max_new_tokens=_NEW,
                pad_token_id=0,
            )[:, _PROMPT:]
        same = [text.text == " ".join(map(str, row)) for text, row in zip(greedy, expected.tolist(), strict=True)]
        results: dict[str, Any] = {"model": name, "texts": _BATCH, "prompt": _PROMPT, "new": _NEW}
        results["greedy texts equal to transformers'"] = f"{sum(same)} of {len(same)}"
        for top_p in (1.0, 0.95):
            seconds: dict[str, list[float]] = {"isthmus": [], "transformers": []}
            contenders: dict[str, Callable[[float], None]] = {"isthmus": ours, "transformers": theirs}
            for _ in range(repeats):
                for who, run in contenders.items():
                    begun = time.process_time()
                    run(top_p)
                    seconds[who].append(time.process_time() - begun)
            rates = {who: round(_BATCH * _NEW / statistics.median(taken)) for who, taken in seconds.items()}
            results[f"top_p {top_p}"] = {
                "tokens per CPU second": rates,
                "ratio": round(rates["isthmus"] / rates["transformers"], 2),
            }
    return results


_RECIPE = """\
recipe: {recipe}
items: {items}
seed: {seed}
options: {{{options}, instructions: false}}
candidates: {candidates}
keep: {keep}
repairs: 0
dedup: {{minhash: false, exact: false}}
sampling: {{temperature: 0.5, top_p: 0.9, max_tokens: 160}}
"""
_OPTIONS = {
    "code": "topics: [sums, counting, digits, chunks]",
    "mathematics": "kinds: [ordering, quadratic, series], levels: [1]",
}


def checkpoint(steps: int = 600) -> dict[str, Any]:
    """Train `nano` on documents made by template, have it answer other tasks, and count what is accepted."""
    return {"steps": steps} | {recipe: _own_generator(recipe, steps) for recipe in _OPTIONS}


def _own_generator(recipe: str, steps: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, options = Path(name), _OPTIONS[recipe]
        made = _RECIPE.format(recipe=recipe, options=options, items=1500, seed=1, candidates=1, keep=1)
        (folder / "made.yaml").write_text(made)
        results["documents trained on"] = _isthmus(
            "data", "synthesize", f"data={folder}/made.yaml", f"out={folder}/made"
        )["documents"]
        (folder / "mix.yaml").write_text(f"sources: {{made: {{path: {folder}/made}}}}\nreal_floor: 0.0\n")
        trained = _isthmus(
            "train", "model=nano", f"data={folder}/mix.yaml", f"train.steps={steps}", "train.global_batch=16",
            "train.sequence_length=256", "optim.learning_rate=4e-3", f"run.dir={folder}/runs", "run.name=r",
            "log.tensorboard=false", "data.sources.made.max_epochs=null",
        )  # fmt: skip
        results["loss"] = round(trained["loss"], 3)
        asked = _RECIPE.format(recipe=recipe, options=options, items=40, seed=2, candidates=4, keep=4)
        asked += f"generator: {{kind: checkpoint, path: {folder}/runs/r}}\n"
        (folder / "asked.yaml").write_text(asked)
        begun = time.perf_counter()
        found = _isthmus("data", "synthesize", f"data={folder}/asked.yaml", f"out={folder}/asked")
        results |= {key: found[key] for key in ("items", "tries", "accepted", "reasons", "topics")}
        results["seconds"] = round(time.perf_counter() - begun, 1)
    return results


def _isthmus(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "isthmus.launch.cli", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer
