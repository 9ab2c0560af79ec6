"""The model on one process, for continuing texts: no gradients, no optimizer, keys and values kept.

B slots, S tokens read in at once, V vocabulary rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch import Tensor

from isthmus.parallelism import cpu
from isthmus.parallelism.config import Fp8Recipe, ModelConfig, ParallelConfig, Precision
from isthmus.parallelism.layers.cache import KeyValueCache, Step, adding
from isthmus.parallelism.model import build_chunks, transformer_config
from isthmus.parallelism.slices import Slice, global_name, pieces_of, slices_of


class InferenceModel:
    """Holds `slots` texts of at most `length` tokens; weights are whatever memory held, until `parameters` are filled.

    It has isthmus' own layers also where transformer-engine is installed: they know the cache.
    """

    def __init__(
        self, model: ModelConfig, precision: Precision, groups: ProcessGroupCollection, *, slots: int, length: int
    ) -> None:
        # What was trained in fp8 has bf16 weights.
        held_in = Precision.fp32 if precision is Precision.fp32 else Precision.bf16
        config = transformer_config(model, ParallelConfig(), held_in, Fp8Recipe.delayed, False, own_layers=True)
        model_parallel_cuda_manual_seed(0, force_reset_rng=True)  # nothing is drawn, but Megatron wants a generator
        with cpu.construction():
            (self._chunk,) = build_chunks(model, config, groups, length)
        self._chunk.eval()
        self._tied = model.tied_embeddings
        self.slots, self.length = slots, length
        self.lengths = [0] * slots
        like = next(self._chunk.parameters())
        self.device = like.device
        self._attentions: list[Any] = [layer.self_attention.core_attention for layer in self._chunk.decoder.layers]
        self._caches = [
            KeyValueCache(slots, model.num_query_groups, length, attention.head_dim, like)
            for attention in self._attentions
        ]

    def parameters(self) -> Iterator[tuple[Slice, Tensor]]:
        """Yield (address, flat view) of every weight, as checkpoints address them."""
        layers = list(range(len(self._attentions)))
        for local_name, parameter in self._chunk.named_parameters():
            name = global_name(local_name, layer_numbers=layers, first_expert=0, tied_embeddings=self._tied)
            pieces = pieces_of(name, tuple(parameter.shape), tensor_rank=0, tensor_size=1)
            flat = parameter.detach().view(-1)
            for where, first, last in slices_of(pieces, 0, flat.numel()):
                yield where, flat[first:last]

    def logits(self, tokens_BS: Tensor) -> Tensor:
        """Return the logits of every position, (B, S, V), without the cache."""
        return self._forward(tokens_BS, None, last_only=False)

    def read(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """Begin a text in a slot; return the logits after its last token, (V,).

        Raises:
            ValueError: it is empty, or longer than a slot.
        """
        if not 0 < len(tokens) <= self.length:
            raise ValueError(f"{len(tokens)} tokens do not fit a slot of {self.length}")
        self.lengths[slot] = len(tokens)
        return self._forward(torch.tensor([list(tokens)]), Step(slot), last_only=True)[0, -1]

    def add(self, tokens: Sequence[int], active: Sequence[bool]) -> Tensor:
        """Add a token to each active slot; return the logits after it, (B, V), where other rows have no meaning.

        Raises:
            ValueError: an active slot is full.
        """
        if any(busy and held >= self.length for held, busy in zip(self.lengths, active, strict=True)):
            raise ValueError(f"a slot holds {self.length} tokens already")
        step = adding(self.lengths, list(active), self.length, self.device)
        self.lengths = [held + busy for held, busy in zip(self.lengths, active, strict=True)]
        return self._forward(torch.tensor(list(tokens))[:, None], step, last_only=True)[:, -1]

    @torch.inference_mode()
    def _forward(self, tokens_BS: Tensor, step: Step | None, *, last_only: bool) -> Tensor:
        for attention, cache in zip(self._attentions, self._caches, strict=True):
            attention.cache = None if step is None else cache
            if step is not None:
                cache.step = step
        self._chunk.last_token_only = last_only
        return self._chunk(tokens_BS.to(self.device), None, None)
