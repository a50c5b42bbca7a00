"""A search is told to trackers."""
