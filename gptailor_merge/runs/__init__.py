"""A run: its directory, its journal, and what may leave this machine."""
