"""Other people's methods of pruning, each producing a recipe of a target size."""
