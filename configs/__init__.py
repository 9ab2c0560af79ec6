"""Hydra configuration groups, one file a choice; the schema of each stands beside the code that it configures."""
