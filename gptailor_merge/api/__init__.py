"""Holds the functions behind the commands and the public names; see gptailor_merge/__init__.py."""
