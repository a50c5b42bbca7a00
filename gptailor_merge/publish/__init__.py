"""A finished recipe becomes a model on disk."""
