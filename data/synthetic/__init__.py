"""Generated text and the verifiers that it must pass."""
