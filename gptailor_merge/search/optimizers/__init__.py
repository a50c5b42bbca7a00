"""Optimisers propose points of a space and learn from their losses."""
