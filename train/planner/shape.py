"""The shape of a model: its parameters, and which shape to give a number of parameters."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from isthmus.errors import UserError
from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.topology import head_dim, padded_vocab_size


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder. The defaults are Llama's layer; `gated=False, biases=True, positions=s, dropout=True` is GPT-3's."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_width: int
    vocabulary: int
    gated: bool = True
    biases: bool = False
    dropout: bool = False
    tied: bool = False
    positions: int = 0  # rows of learned positions
    experts: int = 0
    experts_per_token: int = 1

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        return self.groups * self.head_width

    @property
    def attention_params(self) -> int:
        """Parameters of one layer's attention matrices."""
        return self.hidden * (2 * self.attention_width + 2 * self.kv_width)

    @property
    def ffn_params(self) -> int:
        """Parameters of one feed-forward block (of one expert, where there are several)."""
        return (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def layer_params(self) -> int:
        vectors = 2 * self.hidden
        if self.biases:  # norms have two vectors each; the matrices 3h + h + f + h
            vectors += 2 * self.hidden + self.attention_width + 2 * self.kv_width + 2 * self.hidden + self.ffn
        ffn = self.ffn_params * max(1, self.experts) + self.hidden * self.experts
        return self.attention_params + ffn + vectors

    @property
    def embedding_params(self) -> int:
        return self.hidden * (self.vocabulary * (1 if self.tied else 2) + self.positions)

    @property
    def params(self) -> int:
        return self.layers * self.layer_params + self.embedding_params + self.hidden * (2 if self.biases else 1)

    @property
    def active_matrix_params(self) -> int:
        """Parameters of every matrix product that one token takes part in, the output layer's included."""
        ffn = self.ffn_params * (self.experts_per_token if self.experts else 1) + self.hidden * self.experts
        return self.layers * (self.attention_params + ffn) + self.hidden * self.vocabulary

    def model_flops_per_token(self, sequence: int) -> float:
        """Return forward and backward FLOPs per token (PaLM, arXiv 2204.02311, appendix B; no causal discount)."""
        return 6.0 * self.active_matrix_params + 12.0 * self.layers * self.attention_width * sequence


def shape_of(model: ModelConfig) -> Shape:
    """Return the shape of a configured model."""
    return Shape(
        layers=model.num_layers,
        hidden=model.hidden_size,
        ffn=model.ffn_hidden_size,
        heads=model.num_attention_heads,
        groups=model.num_query_groups,
        head_width=head_dim(model),
        vocabulary=padded_vocab_size(model),
        tied=model.tied_embeddings,
        experts=model.num_experts,
        experts_per_token=model.experts_per_token,
    )


def gpt(*, layers: int, hidden: int, heads: int, vocabulary: int = 51_200, sequence: int = 2048) -> Shape:
    """Return the GPT shape of the Megatron papers.

    P = 12 l h^2 (1 + 13/(12 h) + (V + s)/(12 l h)) (arXiv 2104.04473, equation 2).
    """
    return Shape(
        layers=layers,
        hidden=hidden,
        ffn=4 * hidden,
        heads=heads,
        groups=heads,
        head_width=hidden // heads,
        vocabulary=vocabulary,
        gated=False,
        biases=True,
        dropout=True,
        tied=True,
        positions=sequence,
    )


_SMALL = 2e6


def usual_aspect(params: float) -> float:
    """Return hidden / layers as published models have it.

    Chinchilla's table A9 goes from 64 (44M) to 109 (16B), GPT-3, Llama 2 and 3 from 102 to 130 (7B to 405B): straight
    in ln N from 64 at 44M to 128 at 70B, and no further.
    """
    part = (math.log(params) - math.log(44e6)) / (math.log(70e9) - math.log(44e6))
    return 64.0 + (128.0 - 64.0) * min(max(part, 0.0), 1.0)


def shapes_for(params: float, vocabulary: int, *, tied: bool | None = None) -> Iterator[Shape]:
    """Yield shapes near a number of parameters, those of the most usual aspect first.

    Widths are multiples of 128 (64 below 512, 1024 above 8192), so that matrix products and up to eight-fold tensor
    parallelism divide them; heads are 128 wide (64 below a width of 2048), as many key/value groups as 8 where they
    divide; the inner layer is 3.5 x the width from a width of 4096 on as in Llama 3, else 8/3, in multiples of 256.

    Raises:
        UserError: the embedding alone is larger.
    """
    tied = params < 2e9 if tied is None else tied
    least = None
    found: list[tuple[float, Shape]] = []
    hidden = 64
    while hidden <= 65_536:
        base = _of_width(hidden, vocabulary, tied)
        smallest = replace(base, layers=2).params
        least = smallest if least is None else min(least, smallest)
        layers = (params - base.embedding_params - hidden) / base.layer_params
        for count in _layer_counts(layers):
            candidate = replace(base, layers=count)
            off = abs(math.log(candidate.params / params))
            if off < 0.12 or (params < _SMALL and off < 0.5):  # small shapes are few
                aspect = abs(math.log(hidden / count / usual_aspect(params)))
                found.append((aspect + 4.0 * off, candidate))
        hidden += 64 if hidden < 512 else 128 if hidden < 4096 else 256 if hidden < 8192 else 1024
    if not found:
        raise UserError(
            f"{params:.3g} parameters with a vocabulary of {vocabulary}",
            where="model.vocab_size",
            fix=f"choose {least or 0:.3g} parameters or more, or a smaller vocabulary",
        )
    for _, candidate in sorted(found, key=lambda entry: entry[0]):
        yield candidate


def _of_width(hidden: int, vocabulary: int, tied: bool) -> Shape:
    head = 128 if hidden >= 2048 else 64 if hidden >= 512 else 32
    heads = hidden // head
    ratio = 3.5 if hidden >= 4096 else 8 / 3
    ffn = -(-int(hidden * ratio) // 256) * 256
    groups = next(count for count in (8, 4, 2, 1) if heads % count == 0) if heads >= 8 else heads
    return Shape(
        layers=1,
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        groups=groups,
        head_width=head,
        vocabulary=-(-vocabulary // 128) * 128,
        tied=tied,
    )


def _layer_counts(layers: float) -> set[int]:
    """Return the counts around a wished one that pipelines divide well, and the nearest one."""
    steps = (1,) if layers < 12 else (2, 4) if layers < 40 else (8, 16)
    return {count for step in steps if (count := round(layers / step) * step) >= 2}
