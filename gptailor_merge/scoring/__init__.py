"""Plans become numbers."""
