"""The language of recipes: values, YAML in and out. Knows nothing of weights and model files."""
