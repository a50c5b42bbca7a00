"""Turns texts and task items into batches of tokens."""
