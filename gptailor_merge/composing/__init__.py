"""Plans become live models that share the tensors of the family."""
