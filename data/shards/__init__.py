"""Token shards: Megatron's .bin and .idx, a manifest with content hashes, and a parquet file of lineage."""
