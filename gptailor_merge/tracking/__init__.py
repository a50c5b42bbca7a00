"""Sends a search's progress to experiment trackers."""
