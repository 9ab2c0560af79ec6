"""What the engine is told: the model's shape, how it is laid out over ranks, and its optimizer."""

from dataclasses import dataclass
from enum import Enum

from isthmus.config import key


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp8 = "fp8"


class Recompute(Enum):
    none = "none"
    full = "full"


class Fp8Recipe(Enum):
    delayed = "delayed"
    tensorwise = "tensorwise"
    blockwise = "blockwise"
    mxfp8 = "mxfp8"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A Llama-shaped decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases, no dropout."""

    name: str = key("nano", "shown in run names")
    num_layers: int = key(4, "transformer layers")
    hidden_size: int = key(128, "width of the residual stream")
    ffn_hidden_size: int = key(352, "width of the SwiGLU inner layer")
    num_attention_heads: int = key(4, "query heads")
    num_query_groups: int = key(2, "key/value heads; query heads share them in equal groups")
    head_dim: int | None = key(None, "width of one head (hidden_size / num_attention_heads)")
    vocab_size: int = key(1024, "rows of the embedding; padded to a multiple of 128")
    tied_embeddings: bool = key(False, "use the embedding as output layer too")
    rope_base: float = key(10_000.0, "base of the rotary frequencies")
    norm_epsilon: float = key(1e-5, "epsilon of the RMSNorms")
    init_std: float = key(0.02, "standard deviation of the initial weights; output layers get it / sqrt(2 num_layers)")
    num_experts: int = key(0, "experts of every layer's mixture (0: dense)")
    experts_per_token: int = key(2, "experts that each token is routed to")
    expert_balance: float = key(0.01, "coefficient of the load-balancing loss of the routers")


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """How one site's ranks share the model; the data-parallel size follows from the world size."""

    tensor: int = key(1, "ranks that split each layer's matrices (TP)")
    sequence: bool = key(False, "split norms and residuals along the sequence over the tensor ranks too (SP)")
    pipeline: int = key(1, "pipeline stages (PP)")
    virtual_pipeline: int = key(1, "model chunks per stage; above 1 the schedule is interleaved 1F1B")
    context: int = key(1, "ranks that split each sequence (CP); needs transformer-engine")
    expert: int = key(1, "ranks that split the experts (EP)")
    distributed_optimizer: bool = key(True, "shard optimizer state and fp32 parameters over the data-parallel ranks")
    bucket_parameters: int | None = key(
        None, "parameters per gradient bucket, reduced as soon as it is ready (null: a rank's / 40, at least 1000000)"
    )
    overlap: bool = key(True, "overlap gradient reduction with backward, and parameter gathering with forward")
    recompute: Recompute = key(Recompute.none, "recompute activations in the backward pass: none, full")


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101); norms are not decayed."""

    learning_rate: float = key(3e-4, "peak learning rate")
    beta1: float = key(0.9, "decay of the first moment")
    beta2: float = key(0.95, "decay of the second moment")
    epsilon: float = key(1e-8, "added to the root of the second moment")
    weight_decay: float = key(0.1, "decoupled decay per unit of learning rate; norms and biases have none")
    clip_grad_norm: float = key(1.0, "global gradient norm above which gradients are scaled down (0: never)")


def default_bucket(held: int) -> int:
    """Return the parameters per gradient bucket for a rank that holds so many.

    Small enough that a thin link has work early in the backward pass, large enough for the collectives inside.
    """
    return max(held // 40, 1_000_000)
