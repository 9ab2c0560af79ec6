"""Initial weights that are a function of the seed, the parameter's name and the position, never of the topology."""

import hashlib

import torch

from isthmus.parallelism.slices import Piece

# Drawn at a time. CUDA's generator deals numbers out to as many threads as the GPU holds at once, so a larger block
# would give other weights on another model of GPU; 2^16 fits all of them.
_BLOCK_ELEMENTS = 1 << 16


def fill(parameter: torch.nn.Parameter, pieces: list[Piece], *, seed: int, init_std: float, num_layers: int) -> None:
    """Fill a local parameter in place: ones for norms, N(0, init_std^2) for matrices.

    The layers that write to the residual stream get init_std / sqrt(2 num_layers), so that its variance does not grow
    with depth (GPT-2, Radford et al. 2019, section 2.3). The numbers depend on the device type, not on the layout.
    """
    flat = parameter.detach().view(-1)
    for piece in pieces:
        local = flat[piece.start : piece.start + piece.numel].view(piece.shape)
        if len(piece.shape) == 1:
            local.fill_(1.0)
            continue
        residual = piece.name.endswith(("linear_proj.weight", "linear_fc2.weight"))
        _fill_normal(local, piece, seed, init_std / (2 * num_layers) ** 0.5 if residual else init_std)


def _fill_normal(local: torch.Tensor, piece: Piece, seed: int, std: float) -> None:
    """Draw whole blocks of rows of the global tensor, each from a seed of its own, and keep what lies in this piece."""
    columns = piece.global_shape[1]
    rows_per_block = max(1, _BLOCK_ELEMENTS // columns)
    first_row, first_column = piece.offset
    last_row, last_column = first_row + piece.shape[0], first_column + piece.shape[1]
    generator = torch.Generator(device=local.device)
    for block in range(first_row // rows_per_block, -(-last_row // rows_per_block)):
        digest = hashlib.sha256(f"{seed}/{piece.name}/{block}".encode()).digest()
        generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        begin = block * rows_per_block
        rows = min(rows_per_block, piece.global_shape[0] - begin)
        drawn = torch.empty(rows, columns, device=local.device).normal_(0.0, std, generator=generator)
        low, high = max(first_row, begin), min(last_row, begin + rows)
        local[low - first_row : high - first_row].copy_(drawn[low - begin : high - begin, first_column:last_column])
