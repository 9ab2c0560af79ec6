"""Removing texts that were there before: equal ones, near-duplicates, and copies of benchmarks."""
