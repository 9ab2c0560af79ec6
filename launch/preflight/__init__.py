"""Preflight: finds what would stop or slow a run, on every rank and every link, before it starts."""
