"""Reckons what a search will take, before it begins."""
