"""GPTailor: prune a family of language models by removing, selecting and merging their layers."""

__version__ = "0.1.0"
