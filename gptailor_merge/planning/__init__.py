"""A recipe is checked and resolved to a plan."""
