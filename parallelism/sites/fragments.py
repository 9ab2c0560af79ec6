"""Fragments: which part of the model crosses the links at which step. Pure arithmetic."""

import re

from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.flops import count_parameters
from isthmus.parallelism.topology import padded_vocab_size

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


def fragment_of(name: str, model: ModelConfig, fragments: int) -> int:
    """Return the fragment of a global parameter.

    Layers are strided over the depth (layer l goes to fragment l mod P; arXiv 2501.18512, section 2.1). What belongs to
    no layer (embedding, output layer, final norm) goes, largest first, to the fragment that has the fewest numbers yet.
    """
    if match := _LAYER.search(name):
        return int(match[1]) % fragments
    return _outside(model, fragments)[name]


def _outside(model: ModelConfig, fragments: int) -> dict[str, int]:
    vocabulary = padded_vocab_size(model) * model.hidden_size
    outside = {"embedding.word_embeddings.weight": vocabulary}
    if not model.tied_embeddings:
        outside["output_layer.weight"] = vocabulary
    outside["decoder.final_layernorm.weight"] = model.hidden_size
    layer = (count_parameters(model) - sum(outside.values())) // model.num_layers
    sizes = [layer * len(range(number, model.num_layers, fragments)) for number in range(fragments)]
    assigned = {}
    for name, size in outside.items():
        assigned[name] = sizes.index(min(sizes))
        sizes[assigned[name]] += size
    return assigned


def due_fragment(step: int, every: int, fragments: int) -> int | None:
    """Return the fragment that leaves after inner step `step` (from 1), or None.

    Fragment p leaves when step mod H = floor(p H / P): each exactly every H steps, and with P <= H no two together.
    """
    phase = step % every
    # The only p that can have floor(p H / P) = phase is the smallest with p H >= phase P.
    candidate = -(-phase * fragments // every)
    return candidate if candidate < fragments and candidate * every // fragments == phase else None
