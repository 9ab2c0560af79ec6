"""isthmus' own modules for megatron-core's layer specification, used where transformer-engine is not.

Shape suffixes: S sequence, B batch, N query heads of this rank, G key/value heads of this rank, D head width,
H hidden width, F ffn width of this rank.
"""
