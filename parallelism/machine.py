"""What this machine brings."""

import warnings
from functools import cache

import torch

_OLDEST_TRANSFORMER_ENGINE = (2, 2)


@cache
def has_transformer_engine() -> bool:
    """Return whether transformer-engine's layers will be used: it imports, is new enough, and there is a GPU."""
    if not torch.cuda.is_available():
        return False
    try:
        import transformer_engine
        import transformer_engine.pytorch  # its libraries may be missing although the package is there
    except (ImportError, OSError, RuntimeError):
        return False
    version = tuple(int(part) for part in transformer_engine.__version__.split(".")[:2])
    if version < _OLDEST_TRANSFORMER_ENGINE:
        warnings.warn(f"transformer-engine {transformer_engine.__version__} is too old and not used", stacklevel=2)
    return version >= _OLDEST_TRANSFORMER_ENGINE
