"""Proposes recipes and remembers what became of them."""
