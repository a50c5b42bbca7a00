"""Points of arrays that decode to plans."""
