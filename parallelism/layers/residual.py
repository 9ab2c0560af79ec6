"""The residual connection: without biases and dropout it is one addition."""

from collections.abc import Callable

from torch import Tensor


def get_residual_add(training: bool, fused: bool) -> Callable[[tuple[Tensor, None], Tensor, float], Tensor]:
    """Megatron's `bias_dropout_add` for layers that have neither bias nor dropout."""

    def residual_add(output_and_bias: tuple[Tensor, None], residual: Tensor, dropout: float) -> Tensor:
        return residual + output_and_bias[0]

    return residual_add
