"""Hosts recipes in mergekit: lowers, materialises, exports and imports them."""
