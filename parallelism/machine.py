"""What this machine brings."""

import importlib.util

import torch


def has_transformer_engine() -> bool:
    """Return whether transformer-engine's layers will be used: it is installed, and there is a GPU for it."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None
