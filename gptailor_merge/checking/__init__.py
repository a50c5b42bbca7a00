"""Checks that a directory holds a sound causal language model."""
