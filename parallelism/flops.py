"""Parameters and FLOPs of a model, counted from its configuration."""

from isthmus.parallelism.config import ModelConfig
from isthmus.parallelism.topology import head_dim, padded_vocab_size


def count_parameters(model: ModelConfig, *, active: bool = False) -> int:
    """Return the number of parameters; with `active`, only the experts that one token visits are counted."""
    hidden, heads = model.hidden_size, head_dim(model)
    attention = hidden * heads * (2 * model.num_attention_heads + 2 * model.num_query_groups)
    ffn = 3 * hidden * model.ffn_hidden_size
    if model.num_experts:
        ffn = ffn * (model.experts_per_token if active else model.num_experts) + hidden * model.num_experts
    embeddings = padded_vocab_size(model) * hidden * (1 if model.tied_embeddings else 2)
    return model.num_layers * (attention + ffn + 2 * hidden) + hidden + embeddings


def model_flops_per_token(model: ModelConfig, sequence_length: int) -> float:
    """Return forward and backward FLOPs per token, as MFU counts them (PaLM, arXiv 2204.02311, appendix B).

    6 per parameter of every matrix product (so the output layer counts and the embedding's look-up does not), and
    12 x layers x heads x head_dim x sequence_length for attention, without a discount for the causal mask.
    """
    look_up = 0 if model.tied_embeddings else padded_vocab_size(model) * model.hidden_size
    norms = (2 * model.num_layers + 1) * model.hidden_size
    matrices = count_parameters(model, active=True) - look_up - norms
    attention = 12 * model.num_layers * model.num_attention_heads * head_dim(model) * sequence_length
    return 6.0 * matrices + attention
