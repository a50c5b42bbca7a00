"""Members of a family: checkpoints, configs, headers, architecture and depth rules."""
