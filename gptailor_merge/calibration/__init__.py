"""Texts and task items become batches of tokens."""
