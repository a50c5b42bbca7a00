"""Shows a run to people: as a page, and as the pictures of a card."""
