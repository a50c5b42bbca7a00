"""The functions behind the commands and the public names of the package; see gptailor_merge/__init__.py."""
