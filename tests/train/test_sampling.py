"""Continued texts: what the cache gives equals the full pass, and a text depends on nothing but itself."""

import datetime
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.ranks import RankWorld, isthmus_cli, run_ranks

from isthmus.errors import UserError
from isthmus.train.drawing import draw
from isthmus.train.resuming import at_path

SETTINGS = {"max_tokens": 24, "temperature": 1.0, "top_p": 0.9, "stop": ()}
LENGTH, SLOTS = 160, 4


def test_drawing_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2])
    logits = probabilities.log()
    points = [(step + 0.5) / 1000 for step in range(1000)]
    many = logits.expand(1000, 5)
    drawn = draw(many, temperature=1.0, top_p=1.0, uniforms_B=points)
    assert [drawn.count(token) for token in range(5)] == pytest.approx([100, 400, 50, 250, 200], abs=1)
    # 0.4 + 0.25 < 0.8 <= 0.4 + 0.25 + 0.2: three tokens are left, in their proportions.
    nucleus = draw(many, temperature=1.0, top_p=0.8, uniforms_B=points)
    expected = [0, 1000 * 0.4 / 0.85, 0, 1000 * 0.25 / 0.85, 1000 * 0.2 / 0.85]
    assert [nucleus.count(token) for token in range(5)] == pytest.approx(expected, abs=1)
    assert set(draw(many, temperature=0, top_p=0.1, uniforms_B=points)) == {1}
    assert draw(many[:2], temperature=1.0, top_p=1.0, uniforms_B=[0.0, 1 - 2**-53]) == [0, 4]
    assert draw(many[:2], temperature=1.0, top_p=0.8, uniforms_B=[0.0, 1 - 2**-53]) == [1, 4]
    sharp = draw(many, temperature=0.5, top_p=1.0, uniforms_B=points)
    squares = probabilities**2 / (probabilities**2).sum()
    assert [sharp.count(token) for token in range(5)] == pytest.approx((1000 * squares).tolist(), abs=1)


def test_top_p_looks_beyond_the_likeliest_tokens() -> None:
    flat, peaked = torch.zeros(5000), torch.zeros(5000)
    peaked[7] = 20.0
    points = [(step + 0.5) / 200 for step in range(200)]
    drawn = draw(torch.stack([flat, peaked] * 100), temperature=1.0, top_p=0.5, uniforms_B=points)
    assert len(set(drawn[::2])) == 100
    assert max(drawn[::2]) < 2500  # ties go to the first
    assert set(drawn[1::2]) == {7}


def _model(overrides: list[str]) -> Any:
    """Return a model with weights far from their start, inside `site_groups`."""
    from isthmus.config import compose
    from isthmus.parallelism.groups import site_groups
    from isthmus.parallelism.inference import InferenceModel
    from isthmus.parallelism.topology import Topology
    from isthmus.train.config import Config

    config = compose(Config, "train", ["model=nano", "train.steps=1", *overrides])
    topology = Topology(tensor=1, context=1, data=1, pipeline=1, virtual_pipeline=1, expert=1)
    groups = site_groups(topology, rank=0, timeout=datetime.timedelta(seconds=60))
    entered = groups.__enter__()
    model = InferenceModel(config.model, config.train.precision, entered, slots=SLOTS, length=LENGTH)
    generator = torch.Generator().manual_seed(1)
    for where, flat in model.parameters():
        noise = torch.randn(flat.shape, generator=generator)
        flat.copy_(1 + 0.1 * noise if len(where.shape) == 1 else 0.15 * noise)
    return model, groups


def _texts() -> list[list[int]]:
    generator = random.Random(3)
    return [[generator.randrange(1000) for _ in range(length)] for length in (1, 7, 40, 100, 126, 30, 2)]


def _cached_and_full(world: RankWorld, overrides: list[str]) -> tuple[float, bool]:
    """Rank function: the largest difference of logits over texts of unequal length, and whether greedy agrees."""
    model, groups = _model(overrides)
    worst, same = 0.0, True
    texts = _texts()[:SLOTS]
    last = [model.read(slot, tokens) for slot, tokens in enumerate(texts)]
    for step in range(30):
        for slot, tokens in enumerate(texts):
            if slot == 1 and step > 10:
                continue
            with torch.no_grad():
                full = model.logits(torch.tensor([tokens]))[0, -1]
            worst = max(worst, float((full - last[slot]).abs().max() / full.abs().max()))
            same &= int(full.argmax()) == int(last[slot].argmax())
            tokens.append(int(full.argmax()))
        active = [slot != 1 or step < 10 for slot in range(SLOTS)]  # one text ends early
        last = list(model.add([tokens[-1] for tokens in texts], active))
    groups.__exit__(None, None, None)
    return worst, same


@pytest.mark.parametrize(
    "overrides", [[], ["model.tied_embeddings=true", "model.num_query_groups=4"], ["model.num_experts=4"]],
    ids=["grouped-query", "tied", "experts"],
)  # fmt: skip
def test_the_cache_gives_what_the_full_pass_gives(overrides: list[str]) -> None:
    ((worst, same),) = run_ranks(_cached_and_full, 1, overrides)
    assert worst < 1e-5
    assert same


def _complete_in_batches(world: RankWorld, batches: list[list[int]]) -> dict[int, Any]:
    """Rank function: continue texts in batches of the numbers given; return them by number."""
    import numpy as np

    from isthmus.train.sampling import CheckpointSampler

    class Numbers:
        """A tokenizer of numbers between blanks."""

        size, end, name, hash = 1000, 0, "numbers", "numbers"

        def encode(self, texts: list[str]) -> list[Any]:
            return [np.array([int(word) for word in text.split()], dtype=np.int32) for text in texts]

        def decode(self, tokens: list[int]) -> str:
            return "".join(f" {token}" for token in tokens)

    model, groups = _model([])
    sampler = CheckpointSampler(model, Numbers(), start=[0], fingerprint="x")
    found = {}
    for numbers in batches:
        prompts = [" ".join(map(str, _texts()[number])) for number in numbers]
        answers = sampler.complete(prompts, seeds=numbers, **SETTINGS)
        found |= {number: (answer.text, answer.finish) for number, answer in zip(numbers, answers, strict=True)}
    (plain,) = sampler.complete(["5 6"], seeds=[9], **SETTINGS)
    word = plain.text.split()[5]
    (stopped,) = sampler.complete(["5 6"], seeds=[9], **{**SETTINGS, "stop": (f" {word} ",)})
    (full,) = sampler.complete([" ".join(["3"] * LENGTH)], seeds=[1], **SETTINGS)
    (cut,) = sampler.complete([" ".join(["3"] * (LENGTH - 11))], seeds=[1], **SETTINGS)
    found["stop"] = (plain.text, word, stopped.text, stopped.finish)
    found["full"] = (full.text, full.finish, cut.completion_tokens, cut.finish)
    groups.__exit__(None, None, None)
    return found


def test_a_text_depends_on_its_prompt_and_seed_alone() -> None:
    several = [[[0, 1, 2, 3, 4, 5, 6]], [[6, 2], [5], [4, 0, 3, 1]], [[3], [6, 5, 4, 3, 2, 1, 0]]]
    first, *others = run_ranks(_complete_in_batches, 1, several[0]) + [
        run_ranks(_complete_in_batches, 1, batches)[0] for batches in several[1:]
    ]
    assert len({first[number] for number in range(7)}) == 7
    for other in others:
        assert other == first
    plain, word, stopped, finish = first["stop"]
    assert (stopped, finish) == (plain[: plain.find(f" {word} ")], "stop")
    assert first["full"] == ("", "length", 10, "length")


def _outer_and_inner(world: RankWorld, root: str) -> bool:
    """Rank function: whether a checkpoint of local sync gives its outer parameters."""
    from support.checkpoints import new_store
    from support.crash_ranks import manifest_of

    from isthmus.fault_tolerance.commit import commit, write_part
    from isthmus.fault_tolerance.reader import Reader
    from isthmus.fault_tolerance.records import Record
    from isthmus.fault_tolerance.snapshot import Snapshot
    from isthmus.train.resuming import at_path
    from isthmus.train.sampling import load_weights

    model, groups = _model([])
    wanted = [flat.clone() for _, flat in model.parameters()]
    records = []
    for kind, scale in (("parameter", 2.0), ("outer", 1.0)):
        for where, flat in model.parameters():
            record = Record(kind, where.name, where.global_shape, where.offset, where.shape, where.start, where.stop)
            records.append((record, flat.clone() * scale))
    store = new_store(Path(root))
    snapshot = Snapshot()
    snapshot.fill(records, {})
    write_part(store.fs, store.path(3, 1), 0, snapshot.view())
    commit(store.fs, store.path(3, 1), manifest_of(3, 1, 1), deadline_seconds=5, alive=lambda: True)
    found = at_path(Path(root))
    assert found.manifest is not None
    for _, flat in model.parameters():
        flat.zero_()
    kind = load_weights(model, Reader(found.folder, found.manifest))
    groups.__exit__(None, None, None)
    return kind == "outer" and all(
        torch.equal(flat, before) for (_, flat), before in zip(model.parameters(), wanted, strict=True)
    )


def test_local_sync_gives_the_parameters_that_sites_share(tmp_path: Path) -> None:
    assert run_ranks(_outer_and_inner, 1, str(tmp_path)) == [True]


def _open_and_continue(world: RankWorld, run: str) -> Any:
    from isthmus.train.sampling import samplers

    with samplers() as open_sampler:
        sampler, again = open_sampler(run), open_sampler(run)
        settings = SETTINGS | {"temperature": 0.0}
        texts = sampler.complete(["Question: Amara has", "The"], seeds=[1, 2], **settings)
        return sampler.fingerprint == again.fingerprint, texts


def test_a_trained_run_is_opened_and_continued(tmp_path: Path) -> None:
    words = ["train.steps=60", "train.global_batch=16", "optim.learning_rate=3e-3", "log.tensorboard=false"]
    trained = isthmus_cli("train", "model=nano", f"run.dir={tmp_path}", "run.name=r", *words)
    assert trained.code == 0, trained.err
    ((same, texts),) = run_ranks(_open_and_continue, 1, str(tmp_path / "r"))
    assert same
    # It has learnt nothing but frequent words; random weights would give none.
    assert all(any(word in text.text for word in (" the", " and", ".", ",")) for text in texts), texts
    with pytest.raises(UserError, match="holds no checkpoint"):
        at_path(tmp_path / "nothing")
