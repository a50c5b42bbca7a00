"""Recipes become numbers."""
