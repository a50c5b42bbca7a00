"""Views of a run: a page, pictures."""
