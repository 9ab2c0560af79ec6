"""Checkpoints that continue texts: what `isthmus data synthesize` uses as `kind: checkpoint`."""

import datetime
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from isthmus.config import from_flat
from isthmus.data.run_tokenizer import tokenizer_of_run
from isthmus.data.synthetic.protocols import Completion
from isthmus.data.tokenizers import TextTokenizer
from isthmus.errors import UserError
from isthmus.fault_tolerance.manifest import Broken, Manifest, check_hashes
from isthmus.fault_tolerance.reader import Reader
from isthmus.fault_tolerance.records import Record
from isthmus.parallelism.config import ParallelConfig
from isthmus.parallelism.groups import site_groups
from isthmus.parallelism.inference import InferenceModel
from isthmus.parallelism.topology import build_topology
from isthmus.train.config import Config
from isthmus.train.drawing import draw
from isthmus.train.resuming import at_path

_SLOTS = {"cpu": 16, "cuda": 64}  # texts continued at once; never fewer, so that numbers do not depend on how many
_VERSION = 1  # part of the fingerprint: raise it when the same request would give another text
_WAIT = datetime.timedelta(seconds=60)


@contextmanager
def samplers() -> Iterator[Callable[[str], "CheckpointSampler"]]:
    """Within: checkpoints can be opened by their path, a run's or their own; several share the process."""
    with ExitStack() as stack:
        opened: list[object] = []

        def open_sampler(path: str) -> CheckpointSampler:
            if not opened:
                topology = build_topology(ParallelConfig(), 1)
                opened.append(stack.enter_context(site_groups(topology, rank=0, timeout=_WAIT)))
            return _open(path, opened[0])

        yield open_sampler


class CheckpointSampler:
    """Continues texts. What becomes of one depends on its prompt, seed and settings, not on the others.

    Args:
        start: tokens that stand before a prompt, as where documents begin in training.
        fingerprint: changes with weights, tokenizer and method.
    """

    def __init__(
        self, model: InferenceModel, tokenizer: TextTokenizer, *, start: Sequence[int], fingerprint: str
    ) -> None:
        self.fingerprint = fingerprint
        self._model, self._tokenizer, self._start = model, tokenizer, list(start)

    def complete(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        stop: Sequence[str],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """Continue each prompt until the model ends the document, a stop text, `max_tokens`, or the trained length.

        A prompt that fills the trained length by itself gets no answer, cut off at once.
        """
        encoded = [self._start + ids.tolist() for ids in self._tokenizer.encode(list(prompts))]
        texts = [
            _Text(tokens, min(max_tokens, self._model.length - len(tokens)), Random(seed))
            for tokens, seed in zip(encoded, seeds, strict=True)
        ]
        waiting = deque(text for text in texts if text.room > 0)
        slots: list[_Text | None] = [None] * self._model.slots
        while waiting or any(slots):
            for number, held in enumerate(slots):
                while held is None and waiting:
                    held = waiting.popleft()
                    logits_V = self._model.read(number, held.prompt)
                    (token,) = self._draw(logits_V[None], [held], temperature, top_p)
                    held = self._advance(held, token, stop)
                slots[number] = held
            active = [text is not None for text in slots]
            if any(active):
                logits_BV = self._model.add([text.made[-1] if text else 0 for text in slots], active)
                drawn = self._draw(logits_BV, slots, temperature, top_p)
                for number, text in enumerate(slots):
                    if text is not None:
                        slots[number] = self._advance(text, drawn[number], stop)
        return [Completion(text.text, len(text.prompt), len(text.made), text.finish) for text in texts]

    def _draw(self, logits_BV: Tensor, texts: Sequence["_Text | None"], temperature: float, top_p: float) -> list[int]:
        """Return a token for each text, by its own next random number."""
        uniforms = [0.5 if text is None else text.random.random() for text in texts]
        # The embedding may have rows that no token stands for.
        known_BV = logits_BV[:, : self._tokenizer.size]
        return draw(known_BV, temperature=temperature, top_p=top_p, uniforms_B=uniforms)

    def _advance(self, text: "_Text", token: int, stop: Sequence[str]) -> "_Text | None":
        """Add a token to a text; return it, or None when it has ended."""
        text.made.append(token)
        if token == self._tokenizer.end:
            text.text, text.finish = self._tokenizer.decode(text.made[:-1]), "stop"
        elif stop and self._meets(text, stop):
            whole = self._tokenizer.decode(text.made)
            text.text, text.finish = whole[: min(whole.find(word) for word in stop if word in whole)], "stop"
        elif len(text.made) >= text.room:
            text.text, text.finish = self._tokenizer.decode(text.made), "length"
        else:
            return text
        return None

    def _meets(self, text: "_Text", stop: Sequence[str]) -> bool:
        """Say whether a stop text has just been completed; a token is at least one byte, so it lies in the last few."""
        longest = max(len(word.encode()) for word in stop)
        tail = self._tokenizer.decode(text.made[-longest - 8 :])
        if not any(word in tail for word in stop):
            return False
        whole = self._tokenizer.decode(text.made)
        return any(word in whole for word in stop)


@dataclass(eq=False)
class _Text:
    """A text that is being continued; `room` is how many tokens may be added."""

    prompt: list[int]
    room: int
    random: Random
    made: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = "length"


def _open(path: str, groups: object) -> CheckpointSampler:
    """Open a checkpoint.

    Raises:
        UserError: there is none that is whole, or its configuration or data are no longer to be had.
    """
    found = at_path(Path(path))
    manifest = found.manifest
    assert manifest is not None
    try:
        check_hashes(found.folder, manifest, range(manifest.ranks))
        config = from_flat(Config, manifest.config, str(found.folder))
        reader = Reader(found.folder, manifest)
        sources = reader.state(0)["parts"]["loader"]["log"][-1]["mixture"]["sources"]
        fingerprints = {name: str(source[0]) for name, source in sources.items()}
        tokenizer = tokenizer_of_run(
            config.data, config.model.vocab_size, fingerprints, sequence_length=config.train.sequence_length
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = InferenceModel(
            config.model,
            config.train.precision,
            groups,
            slots=_SLOTS[device],
            length=config.train.sequence_length,
        )
        kind = load_weights(model, reader)
    except Broken as error:
        raise UserError(f"is broken: {error}", where=str(found.folder), fix="choose another checkpoint") from None
    start = [] if config.data.mask_documents else [tokenizer.end]
    fingerprint = _fingerprint(manifest, kind, tokenizer, config, device)
    return CheckpointSampler(model, tokenizer, start=start, fingerprint=fingerprint)


def load_weights(model: InferenceModel, reader: Reader) -> str:
    """Fill a model from a checkpoint; return the kind of numbers taken.

    Where sites train by local sync, it is the outer parameters: those that the sites share.

    Raises:
        Broken: some number is in no file.
    """
    kind = "outer" if "outer" in reader.shapes() else "parameter"
    targets = [
        (Record(kind, where.name, where.global_shape, where.offset, where.shape, where.start, where.stop), flat)
        for where, flat in model.parameters()
    ]
    reader.fill(targets, near=0)
    return kind


def _fingerprint(manifest: Manifest, kind: str, tokenizer: TextTokenizer, config: Config, device: str) -> str:
    parts = [_VERSION, manifest.votes, manifest.step, kind, tokenizer.hash, config.train.precision.name, device]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
