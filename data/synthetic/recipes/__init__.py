"""Kinds of synthetic text, a module each."""
