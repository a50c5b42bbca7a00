"""What we need to know of mergekit: methods, their arithmetic, conversions of checkpoints."""
