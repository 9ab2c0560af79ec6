"""A run's model in the formats of others. Nothing here reads a pickle; Megatron's own format holds some that we write."""
