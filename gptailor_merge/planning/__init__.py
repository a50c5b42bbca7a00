"""Checks recipes and resolves them to plans."""
