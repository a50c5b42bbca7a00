"""Members of a family: names, checkpoints, configs, and the rules of architectures and depth."""
