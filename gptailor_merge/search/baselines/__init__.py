"""Baselines: published methods of pruning, to compare with and to start from."""
