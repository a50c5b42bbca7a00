"""Composes live models from plans; they share the tensors of the family."""
