"""The engine: megatron-core's model, parallelism and optimizer, on GPU and CPU by one code path."""
