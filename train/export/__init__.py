"""A run's model in the formats of others. Nothing here reads a pickle; Megatron's format has some, which we write."""
