"""Kinds of objectives, one file each, and the registry that knows them."""
